//! Makes a bare Debian 12 with rustup's stable toolchain ready, and says what it does. Running it again does nothing.

use std::{
    env, fs,
    io::{self, Write as _},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::{self, Package},
    host,
    package::MUSL,
    toolchain::{self, Linker, Origin, PINNED_NIGHTLY, Rust, Unfit},
};

/// What to set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Change nothing: say what is there and what is missing, and fail if something is.
    pub check: bool,
    /// What for.
    pub purpose: Purpose,
    /// Also what static programs need (`cargo xtask package --musl`).
    pub musl: bool,
}

/// What a machine is made ready for; each has what those before it have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// `cargo build`.
    Build,
    /// The demo, which brings its own clients and backends: whoever only wants to look waits for no browser and no rival.
    Demo,
    /// Tests and benchmarks, too.
    #[default]
    Everything,
}

/// One thing that has to be there.
struct Step {
    what: &'static str,
    why: &'static str,
    /// What was found, or what is missing.
    find: fn() -> Result<String, String>,
    install: fn() -> Result<()>,
    /// Without it something is left out, and says so; nothing fails.
    optional: bool,
}

const BUILD: [Step; 2] = [
    Step {
        what: "rustc for BPF",
        why: "compiles the kernel programs, and core for them",
        find: || display(Rust::find()),
        install: install_rust,
        optional: false,
    },
    Step {
        what: "bpf-linker",
        why: "makes them one object with BTF",
        find: || display(Linker::find()),
        install: install_linker,
        optional: false,
    },
];

const STATIC: [Step; 2] = [
    Step {
        what: "musl-gcc",
        why: "builds the C parts of static programs",
        find: || find_packages(&apt::STATIC),
        install: || apt::install(&apt::STATIC),
        optional: false,
    },
    Step {
        what: MUSL,
        why: "Rust's standard library for static programs",
        find: find_musl,
        install: install_musl,
        optional: false,
    },
];

const DEMO: [Step; 1] = [Step {
    what: "bpffs",
    why: "keeps programs and maps when the agent ends",
    find: find_bpffs,
    install: mount_bpffs,
    optional: false,
}];

const TESTS: [Step; 2] = [
    Step {
        what: "Debian packages",
        why: "traffic, namespaces and rivals for tests and benchmarks",
        find: || find_packages(&apt::TESTS),
        install: || apt::install(&apt::TESTS),
        optional: false,
    },
    Step {
        what: "Miri",
        why: "looks for undefined behaviour in the pure code",
        find: find_miri,
        install: install_miri,
        optional: true,
    },
];

/// Goes through all steps, each with a line: what, why, and what was found or how long the installation took.
///
/// # Errors
/// The first installation that fails, with what to do; with `--check`, that something is missing.
pub fn run(options: Options) -> Result<()> {
    let begin = Instant::now();
    let mut steps: Vec<&Step> = BUILD.iter().collect();
    if options.musl {
        steps.extend(&STATIC);
    }
    if options.purpose >= Purpose::Demo {
        steps.extend(&DEMO);
    }
    if options.purpose >= Purpose::Everything {
        steps.extend(&TESTS);
    }
    let mut missing = 0;
    for (index, step) in steps.iter().enumerate() {
        print!("[{}/{}] {} ({}): ", index + 1, steps.len(), step.what, step.why);
        io::stdout().flush()?;
        match (step.find)() {
            Ok(found) => println!("{found}"),
            Err(why) => {
                println!("missing\n      {why}");
                missing += usize::from(!step.optional);
                if options.check {
                    continue;
                }
                match install(step) {
                    Err(error) if step.optional => println!("      {error:#}; going on without"),
                    result => result?,
                }
            }
        }
    }
    if options.check && missing > 0 {
        bail!("{missing} of {} missing: run `cargo xtask setup`", steps.len());
    }
    println!("setup: ready ({:.1} s)\n", begin.elapsed().as_secs_f32());
    Ok(())
}

fn install(step: &Step) -> Result<()> {
    let begin = Instant::now();
    (step.install)().with_context(|| format!("setup cannot install: {}", step.what))?;
    match (step.find)() {
        Ok(found) => {
            println!("      installed in {:.0} s: {found}", begin.elapsed().as_secs_f32());
            Ok(())
        }
        Err(missing) => bail!("{} was installed, and yet there is {missing}", step.what),
    }
}

/// rustup where it can, as it does not touch the system; Debian's compiler where rustup's server is out of reach.
fn install_rust() -> Result<()> {
    // An interrupted download must not hold everything up: Debian's mirror may be nearer.
    const LIMIT: Duration = Duration::from_secs(300);
    let rustup = || {
        let mut rustup = Command::new("rustup");
        rustup.env("RUSTUP_MAX_RETRIES", "1");
        rustup
    };
    let mut attempts = Vec::new();
    for (origin, candidate) in Rust::candidates() {
        if let (Origin::Rustup(name), Err(Unfit::NoSource)) = (origin, candidate) {
            let mut add = rustup();
            add.args(["component", "add", "rust-src", "--toolchain", &name]);
            attempts.push(add);
        }
    }
    if host::has_program("rustup") {
        let mut install = rustup();
        install.args(["toolchain", "install", PINNED_NIGHTLY, "--profile", "minimal"]);
        install.args(["--component", "rust-src", "--no-self-update"]);
        attempts.push(install);
    }
    for attempt in &mut attempts {
        match host::run_within(LIMIT, attempt) {
            Ok(()) if Rust::find().is_ok() => return Ok(()),
            Ok(()) => println!("      that was not enough; trying the next way"),
            Err(error) => println!("      {error}; trying the next way"),
        }
    }
    apt::install(&apt::RUST).with_context(|| {
        format!("neither way works; with a network: `rustup toolchain install {PINNED_NIGHTLY} --component rust-src`")
    })
}

/// Into a directory of its own: the user's other projects may need another one.
fn install_linker() -> Result<()> {
    apt::install(&apt::LINKER)?;
    let root = Linker::root().context("HOME is not set: set it, as the linker goes to $HOME/.cache/lb")?;
    // Cargo warns of programs that are not on the PATH; nobody calls this one by its name.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(env::split_paths(&path).chain([root.join("bin")]))?;
    let mut cargo = host::cargo();
    toolchain::isolate(&mut cargo);
    if let Some(chosen) = env::var_os("RUSTUP_TOOLCHAIN") {
        cargo.env("RUSTUP_TOOLCHAIN", chosen);
    }
    cargo
        .env("PATH", path)
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{}", toolchain::LLVM_MAJOR))
        // Nobody debugs it here, and debug information is slow to make.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .args(["install", "bpf-linker", "--locked", "--force"])
        .args(["--version", &toolchain::LINKER_VERSION.to_string()])
        .args(["--no-default-features", "--features", &format!("llvm-{}", toolchain::LLVM_MAJOR)])
        .arg("--root")
        .arg(root);
    host::run(&mut cargo)
        .context("it comes from crates.io, and needs a C compiler and the package llvm-22-dev")
}

fn find_packages(packages: &'static [Package]) -> Result<String, String> {
    let missing = apt::missing(packages);
    if missing.is_empty() {
        let names: Vec<_> = packages.iter().map(|package| package.name).collect();
        return Ok(names.join(" "));
    }
    let lines: Vec<_> = missing.iter().map(|package| format!("{}: {}", package.name, package.why)).collect();
    Err(lines.join("\n      "))
}

/// Asks the compiler itself: not every one is rustup's.
fn find_musl() -> Result<String, String> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", MUSL]).current_dir(host::workspace());
    let output = rustc.output().map_err(|error| format!("rustc: {error}"))?;
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let has_core = |directory: &str| {
        let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name.to_string_lossy().starts_with("libcore-"))
    };
    if has_core(&directory) { Ok(directory) } else { Err(format!("{directory} does not have it")) }
}

fn install_musl() -> Result<()> {
    host::run(Command::new("rustup").args(["target", "add", MUSL]).current_dir(host::workspace()))
        .with_context(|| format!("it comes from rustup's server; a compiler of Debian's has the package libstd-rust-dev, for {MUSL} none"))
}

const BPFFS: &str = "/sys/fs/bpf";

fn find_bpffs() -> Result<String, String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let is_mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if is_mounted { Ok(format!("mounted on {BPFFS}")) } else { Err(format!("none on {BPFFS}")) }
}

fn mount_bpffs() -> Result<()> {
    if !host::is_root() {
        bail!("mounting is root's: run as root\n  mount -t bpf bpf {BPFFS}");
    }
    host::run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
        .context("the kernel needs CONFIG_BPF_SYSCALL, and a container needs CAP_SYS_ADMIN")
}

fn find_miri() -> Result<String, String> {
    let nightly = toolchain::nightlies().into_iter().find(toolchain::Nightly::has_miri);
    nightly.map(|nightly| nightly.name).ok_or_else(|| "no nightly toolchain has it".to_owned())
}

fn install_miri() -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(300);
    let nightlies = toolchain::nightlies();
    let nightly = nightlies.first().context("there is no nightly toolchain that it could go with")?;
    let mut add = Command::new("rustup");
    add.env("RUSTUP_MAX_RETRIES", "1");
    add.args(["component", "add", "miri", "rust-src", "--toolchain", &nightly.name]);
    host::run_within(LIMIT, &mut add)
}

fn display(found: Result<impl ToString, impl ToString>) -> Result<String, String> {
    found.map(|found| found.to_string()).map_err(|missing| missing.to_string())
}
