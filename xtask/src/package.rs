//! What is shipped: a Debian package and archives, with units, completions, manuals and documents.
//!
//! The same commit gives the same bytes when it is built again by the same tools: times are those of the commit
//! (`SOURCE_DATE_EPOCH`), owners are root, names are in order, and the programs are built for the package alone, with no path of this
//! machine in them. Debian's own `dpkg-deb` puts the package together.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{host, setup, toolchain};

/// What to make.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Programs that are there already, instead of built ones.
    pub programs: Option<PathBuf>,
    /// Where everything goes; `target/package` without it.
    pub to: Option<PathBuf>,
    /// An archive of programs that need no library of the system (musl), beside the rest.
    pub musl: bool,
}

/// The standard library of programs that run on any Linux of this architecture, whatever its C library.
pub const MUSL: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-musl" } else { "x86_64-unknown-linux-musl" };
const GNU: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

/// Builds and packs.
pub fn run(options: &Options) -> Result<()> {
    let to = match &options.to {
        Some(to) => to.clone(),
        None => host::target_dir()?.join("package"),
    };
    if options.programs.is_none() || options.musl {
        setup::run(setup::Options { check: false, purpose: setup::Purpose::Build, musl: options.musl })?;
    }
    let programs = match &options.programs {
        Some(programs) => programs.clone(),
        None => build(GNU)?,
    };
    let version = version(&programs)?;
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    forget_former(&to)?;
    let tree = to.join("tree");
    stage(&tree, &programs)?;

    let package = to.join(format!("lb_{version}_{architecture}.deb"));
    debian(&tree, &to.join("debian"), &package, &version, &architecture)?;
    let mut made = vec![package, to.join(format!("lb-{version}-{architecture}.tar.gz"))];
    archive(&tree, &made[1])?;
    if options.musl {
        made.push(to.join(format!("lb-{version}-{MUSL}.tar.gz")));
        musl(&to, &made[2])?;
    }
    for file in made {
        println!("made {}", file.display());
    }
    Ok(())
}

/// A container is made of whatever matches a name: that must not be two versions.
fn forget_former(to: &Path) -> Result<()> {
    let is_ours = |name: &str| {
        (name.starts_with("lb_") && name.ends_with(".deb"))
            || (name.starts_with("lb-") && name.ends_with(".tar.gz"))
    };
    for entry in fs::read_dir(to).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_ours) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Builds the programs, and says where they are. For a target that is named, so that what is built for developers has other
/// directories and other flags.
fn build(target: &str) -> Result<PathBuf> {
    let target_dir = host::target_dir()?;
    let remapped = toolchain::path_prefixes(host::workspace(), &target_dir);
    let all = |option: &str, between: &str| -> OsString {
        let flags: Vec<OsString> = remapped.iter().map(|prefix| prefix.flag(option)).collect();
        flags.join(OsStr::new(between))
    };
    let mut build = host::cargo();
    build
        .args(["build", "--release", "--locked", "--bins", "--package", "lb-userspace", "--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", all("--remap-path-prefix=", "\u{1f}"))
        .env(format!("CFLAGS_{}", target.replace('-', "_")), all("-ffile-prefix-map=", " "));
    host::run(&mut build)?;
    Ok(target_dir.join(target).join("release"))
}

/// Programs that need nothing of the system that they run on; that is tried.
fn musl(to: &Path, archive: &Path) -> Result<()> {
    let programs = build(MUSL)?;
    let tree = to.join("tree-musl");
    stage(&tree, &programs)?;
    self::archive(&tree, archive)?;
    alone(archive, &to.join("alone"))
}

/// Unpacks the archive into an empty directory, and runs its programs with that as the root directory: there is no library, no shell,
/// no /proc and no /dev. (As `deploy/Containerfile.static` would, but for its mounts.)
fn alone(archive: &Path, root: &Path) -> Result<()> {
    const EXAMPLE: &str = "/usr/share/doc/lb/examples/lb.toml";
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    fs::create_dir_all(root)?;
    host::run(Command::new("tar").args(["--extract", "--file"]).arg(archive).arg("--directory").arg(root))?;
    let within = |words: &[&str]| {
        let mut command = Command::new("unshare");
        if !host::is_root() {
            command.arg("--map-root-user");
        }
        command.arg("--root").arg(root).args(words);
        command
    };
    for words in [
        &["/usr/bin/lbctl", "--version"][..],
        &["/usr/bin/lbctl", "validate", EXAMPLE],
        &["/usr/bin/lbd", "--version"],
    ] {
        output(&mut within(words)).with_context(|| format!("{words:?} in an empty root"))?;
    }
    // Nothing that lbd needs is there, and it says so of each thing.
    let check = within(&["/usr/bin/lbd", "--check", "--config", EXAMPLE]).output()?;
    let said = String::from_utf8_lossy(&check.stdout);
    ensure!(
        check.status.code() == Some(1)
            && said.contains("ok      configuration")
            && said.contains("failed  BPF file system"),
        "lbd --check in an empty root: {}\n{said}{}",
        check.status,
        String::from_utf8_lossy(&check.stderr)
    );
    Ok(fs::remove_dir_all(root)?)
}

const PROGRAMS: [&str; 2] = ["lbd", "lbctl"];

/// Files of the repository, and where they go.
const FILES: [(&str, &str); 21] = [
    ("deploy/lb.sysusers", "usr/lib/sysusers.d/lb.conf"),
    ("deploy/lb.tmpfiles", "usr/lib/tmpfiles.d/lb.conf"),
    ("deploy/lb.schema.json", "usr/share/lb/lb.schema.json"),
    ("deploy/openapi.json", "usr/share/lb/lb.openapi.json"),
    ("deploy/prometheus/lb.rules.yml", "usr/share/lb/prometheus/lb.rules.yml"),
    ("deploy/prometheus/lb.rules.test.yml", "usr/share/lb/prometheus/lb.rules.test.yml"),
    ("deploy/grafana/lb.json", "usr/share/lb/grafana/lb.json"),
    ("deploy/lb.toml", "usr/share/doc/lb/examples/lb.toml"),
    ("deploy/examples/blue-green.toml", "usr/share/doc/lb/examples/blue-green.toml"),
    ("deploy/kubernetes/lb.yaml", "usr/share/doc/lb/examples/kubernetes/lb.yaml"),
    ("deploy/ci/rollout.sh", "usr/share/doc/lb/examples/ci/rollout.sh"),
    ("deploy/ci/Jenkinsfile", "usr/share/doc/lb/examples/ci/Jenkinsfile"),
    ("deploy/ci/github-workflow.yml", "usr/share/doc/lb/examples/ci/github-workflow.yml"),
    ("deploy/deb/copyright", "usr/share/doc/lb/copyright"),
    ("README.md", "usr/share/doc/lb/README.md"),
    ("ARCHITECTURE.md", "usr/share/doc/lb/ARCHITECTURE.md"),
    ("CHANGELOG.md", "usr/share/doc/lb/CHANGELOG.md"),
    ("CONTRIBUTING.md", "usr/share/doc/lb/CONTRIBUTING.md"),
    ("SECURITY.md", "usr/share/doc/lb/SECURITY.md"),
    ("LICENSE-MIT", "usr/share/doc/lb/LICENSE-MIT"),
    ("LICENSE-APACHE", "usr/share/doc/lb/LICENSE-APACHE"),
];

/// Lays everything out as it will lie on a host.
fn stage(tree: &Path, programs: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree)?;
    }
    let root = host::workspace();
    for program in PROGRAMS {
        let to = tree.join("usr/bin").join(program);
        place(&programs.join(program), &to, 0o755)?;
        // Backtraces keep their names; lines are for those who build it themselves.
        host::run(Command::new("strip").arg("--strip-debug").arg(&to))?;
    }
    let mode = |path: &Path| if path.extension().is_some_and(|kind| kind == "sh") { 0o755 } else { 0o644 };
    for (from, to) in FILES {
        place(&root.join(from), &tree.join(to), mode(Path::new(from)))?;
    }
    for entry in fs::read_dir(root.join("docs"))?.flatten() {
        let to = tree.join("usr/share/doc/lb/docs").join(entry.file_name());
        place(&entry.path(), &to, mode(&entry.path()))?;
    }
    // What is in /usr/local there is the package's here.
    let unit = fs::read_to_string(root.join("deploy/lbd.service"))?.replace("/usr/local/bin/", "/usr/bin/");
    write(&tree.join("usr/lib/systemd/system/lbd.service"), unit.as_bytes())?;

    let lbctl = programs.join("lbctl");
    for (shell, to) in [
        ("bash", "usr/share/bash-completion/completions/lbctl"),
        ("zsh", "usr/share/zsh/vendor-completions/_lbctl"),
        ("fish", "usr/share/fish/vendor_completions.d/lbctl.fish"),
    ] {
        write(&tree.join(to), &bytes(Command::new(&lbctl).args(["completions", shell]))?)?;
    }
    let manuals = tree.join("usr/share/man/man1");
    fs::create_dir_all(&manuals)?;
    bytes(Command::new(&lbctl).args(["man", "--to"]).arg(&manuals))?;
    write(&tree.join("usr/share/man/man8/lbd.8"), &bytes(Command::new(programs.join("lbd")).arg("man"))?)?;
    for page in [manuals, tree.join("usr/share/man/man8")].iter().flat_map(fs::read_dir).flatten().flatten() {
        host::run(Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(page.path()))?;
    }
    same_times(tree)
}

fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let text = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, &text)?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

fn write(to: &Path, text: &[u8]) -> Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}

/// Everything is as old as the commit.
fn same_times(tree: &Path) -> Result<()> {
    let epoch = epoch();
    host::run(
        Command::new("find")
            .arg(tree)
            .args(["-exec", "touch", "--no-dereference", "--date"])
            .arg(format!("@{epoch}"))
            .args(["{}", "+"]),
    )
}

fn epoch() -> String {
    let of_commit = || output(host_git().args(["log", "-1", "--format=%ct"])).ok();
    env::var("SOURCE_DATE_EPOCH").ok().or_else(of_commit).unwrap_or_else(|| "0".to_owned())
}

fn host_git() -> Command {
    let mut git = Command::new("git");
    git.current_dir(host::workspace());
    git
}

fn debian(tree: &Path, work: &Path, package: &Path, version: &str, architecture: &str) -> Result<()> {
    if work.exists() {
        fs::remove_dir_all(work)?;
    }
    fs::create_dir_all(work)?;
    host::run(Command::new("cp").args(["--archive"]).arg(tree.join("usr")).arg(work))?;
    let size =
        output(Command::new("du").args(["--summarize", "--apparent-size", "--block-size=1024"]).arg(work))?;
    let size = size.split_whitespace().next().unwrap_or("0").to_owned();
    let libc = output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let libc = libc.split_whitespace().nth(1).context("getconf does not know the C library's version")?;
    let control = fs::read_to_string(host::workspace().join("deploy/deb/control"))?
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@SIZE@", &size)
        .replace("@LIBC@", libc);
    write(&work.join("DEBIAN/control"), control.as_bytes())?;
    for script in ["postinst", "prerm", "postrm"] {
        let from = host::workspace().join("deploy/deb").join(script);
        place(&from, &work.join("DEBIAN").join(script), 0o755)?;
    }
    same_times(work)?;
    host::run(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "-z2", "--build"])
            .args([work, package])
            .env("SOURCE_DATE_EPOCH", epoch()),
    )
}

fn archive(tree: &Path, to: &Path) -> Result<()> {
    host::run(
        Command::new("tar")
            .args([
                "--create",
                "--sort=name",
                "--owner=root:0",
                "--group=root:0",
                "--numeric-owner",
                "--format=gnu",
            ])
            .arg(format!("--mtime=@{}", epoch()))
            .arg("--use-compress-program=gzip -6 -n")
            .arg("--file")
            .arg(to)
            .arg("--directory")
            .arg(tree)
            .arg("usr"),
    )
}

/// The programs say which version they are.
fn version(programs: &Path) -> Result<String> {
    let text = output(Command::new(programs.join("lbctl")).arg("--version"))?;
    let version = text.split_whitespace().nth(1);
    Ok(version.with_context(|| format!("lbctl does not say its version: {text}"))?.to_owned())
}

fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8(bytes(command)?)?.trim().to_owned())
}

fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| host::cannot_start(command))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
