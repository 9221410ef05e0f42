//! Finds what builds the kernel programs: a Rust compiler for BPF and bpf-linker, which must share LLVM's major version.
//!
//! Stateless: it looks at the machine on every call. `cargo xtask setup` installs what is not found here, and
//! build scripts (`object.rs`) build with what is. Hence the standard library only.

use std::{
    env,
    ffi::OsString,
    fmt::{self, Display, Formatter},
    path::{Path, PathBuf},
    process::Command,
};

/// LLVM's major version, of the compiler and of the linker: a linker reads no bitcode that is newer than itself.
pub const LLVM_MAJOR: u32 = 22;

/// The bpf-linker that `setup` installs, and the oldest that is used.
pub const LINKER_VERSION: Version = Version(0, 13, 0);

/// The nightly that `setup` installs where no installed one fits.
pub const PINNED_NIGHTLY: &str = "nightly-2026-05-20";

/// Debian's compiler (packages `rustc-web` and `rust-web-src`).
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What builds the kernel programs.
pub struct Toolchain {
    /// The compiler, and the cargo that drives it.
    pub rust: Rust,
    /// The linker.
    pub linker: Linker,
}

impl Toolchain {
    /// Looks for both parts.
    ///
    /// # Errors
    /// Says which part is missing and why each candidate does not fit.
    pub fn find() -> Result<Self, NotFound> {
        Ok(Self { rust: Rust::find()?, linker: Linker::find()? })
    }

    /// `cargo build` of the kernel crate in `source`, quiet but for warnings and errors. `triple` is the BPF target of
    /// the host's byte order ([`triple`]). The object of each binary comes to `triple`/release in `target_dir`.
    pub fn build(&self, source: &Path, triple: &str, target_dir: &Path) -> Command {
        let mut cargo = self.command(&self.rust.cargo, source);
        cargo
            .arg("build")
            .args(options(triple, target_dir))
            .arg("--config")
            .arg(self.remapped(source, target_dir));
        cargo
    }

    /// Flags, beside those of `.cargo/config.toml`, that keep this machine's directories out of the object.
    fn remapped(&self, source: &Path, target_dir: &Path) -> String {
        let mut prefixes = path_prefixes(source.parent().unwrap_or(source), target_dir);
        if let Some(sysroot) = self.rust.rustc.ancestors().nth(2) {
            prefixes.push(PathPrefix { from: sysroot.to_owned(), to: "/rust" });
        }
        let flags: Vec<_> = prefixes.iter().map(|prefix| prefix.flag("--remap-path-prefix=")).collect();
        format!("target.'cfg(target_arch = \"bpf\")'.rustflags = {flags:?}")
    }

    /// The same code checked with warnings as errors: by Clippy where the compiler has it, by the compiler alone
    /// otherwise.
    pub fn lint(&self, source: &Path, triple: &str, target_dir: &Path) -> Command {
        if let Some(clippy) = &self.rust.clippy {
            let mut cargo = self.command(clippy, source);
            cargo.arg("clippy").args(options(triple, target_dir));
            cargo.args(["--", "-Dwarnings"]);
            return cargo;
        }
        let mut cargo = self.build(source, triple, target_dir);
        cargo.args(["-Zwarnings", "--config", "build.warnings='deny'"]);
        cargo
    }

    fn command(&self, program: &Path, source: &Path) -> Command {
        let mut command = Command::new(program);
        // The crate's own `.cargo/config.toml` has the flags, and cargo looks for it from the current directory.
        command.current_dir(source);
        isolate(&mut command);
        command
            .env("CARGO", &self.rust.cargo)
            .env("RUSTC", &self.rust.rustc)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker.path)
            .env("CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER", &self.linker.path)
            // Empty rather than absent: overrides a wrapper in the user's configuration file.
            .env("RUSTC_WRAPPER", "")
            .env("RUSTC_WORKSPACE_WRAPPER", "");
        if !self.rust.is_nightly() {
            // build-std and the BPF target are unstable; a released compiler has them behind this.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }
}

/// A directory of this machine, and what stands for it in what is built.
pub struct PathPrefix {
    from: PathBuf,
    to: &'static str,
}

impl PathPrefix {
    /// As compilers take it, behind the name of their option.
    pub fn flag(&self, option: &str) -> OsString {
        let mut flag = OsString::from(option);
        flag.push(&self.from);
        flag.push("=");
        flag.push(self.to);
        flag
    }
}

/// Where source code is found; the later ones lie in the earlier ones, and count. Relative paths are those of the workspace, so that
/// warnings still name files that are there.
pub fn path_prefixes(workspace: &Path, target_dir: &Path) -> Vec<PathPrefix> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"));
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home);
    let prefix = |from: &Path, to| PathPrefix { from: from.to_owned(), to };
    let mut prefixes = vec![prefix(workspace, "."), prefix(target_dir, "./target")];
    prefixes.extend(cargo_home.map(|from| prefix(&from, "/cargo")));
    prefixes
}

/// The BPF target of a host of this byte order, which is cargo's `target_endian`: `little` or `big`.
pub fn triple(endian: &str) -> &'static str {
    if endian == "big" { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

fn options(triple: &str, target_dir: &Path) -> [OsString; 6] {
    [
        "--release".into(),
        "--quiet".into(),
        "--target".into(),
        triple.into(),
        "--target-dir".into(),
        target_dir.into(),
    ]
}

/// Takes out of `command`'s environment what an outer cargo, Clippy or rustup left there for itself: it would change
/// compiler, flags or directories of a cargo that runs inside. What says how to reach registries stays.
pub fn isolate(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_outer_build) {
            command.env_remove(name);
        }
    }
}

fn is_of_outer_build(name: &str) -> bool {
    const THEIRS: [&str; 5] = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        // The jobserver: without it both cargos start a job per core.
        "CARGO_MAKEFLAGS",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    THEIRS.iter().any(|prefix| name.starts_with(prefix))
        && !KEPT.iter().any(|prefix| name.starts_with(prefix))
}

/// A compiler that builds core for BPF, and the cargo that drives it.
pub struct Rust {
    /// Where it comes from.
    pub origin: Origin,
    /// The compiler itself, not rustup's proxy.
    pub rustc: PathBuf,
    cargo: PathBuf,
    /// `cargo-clippy` of the same toolchain.
    pub clippy: Option<PathBuf>,
    release: String,
    llvm: Version,
}

/// Where a compiler comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A toolchain of rustup, by name.
    Rustup(String),
    /// Debian's package.
    Debian,
}

/// Why a compiler cannot build the kernel programs.
#[derive(Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is not there, or does not run.
    Absent,
    /// Another LLVM than [`LLVM_MAJOR`], or a linker older than [`LINKER_VERSION`]; in words.
    Version(String),
    /// The source of core is missing: rustup's component `rust-src`.
    NoSource,
}

impl Rust {
    /// The first candidate that fits.
    ///
    /// # Errors
    /// Every candidate, with why it does not fit.
    pub fn find() -> Result<Self, NotFound> {
        let mut tried = Vec::new();
        for (origin, candidate) in Self::candidates() {
            match candidate {
                Ok(rust) => return Ok(rust),
                Err(unfit) => tried.push(format!("{origin}: {unfit}")),
            }
        }
        let what = format!("rustc for BPF (LLVM {LLVM_MAJOR}, with core's source)");
        Err(NotFound { what, tried })
    }

    /// Every nightly of rustup, the pinned one first, then Debian's compiler.
    pub fn candidates() -> Vec<(Origin, Result<Self, Unfit>)> {
        let mut nightlies = nightlies();
        nightlies.sort_by_key(|nightly| !nightly.name.starts_with(PINNED_NIGHTLY));
        let rustup = nightlies.into_iter().map(|nightly| {
            let origin = Origin::Rustup(nightly.name);
            let cargo = nightly.bin.join("cargo");
            let found = Self::probe(origin.clone(), nightly.bin.join("rustc"), cargo);
            (origin, found)
        });
        let debian = Self::probe(Origin::Debian, DEBIAN_RUSTC.into(), host_cargo());
        rustup.chain([(Origin::Debian, debian)]).collect()
    }

    fn probe(origin: Origin, rustc: PathBuf, cargo: PathBuf) -> Result<Self, Unfit> {
        let (release, llvm) =
            stdout(Command::new(&rustc).arg("-vV")).as_deref().and_then(parse_rustc).ok_or(Unfit::Absent)?;
        if llvm.0 != LLVM_MAJOR {
            return Err(Unfit::Version(format!("LLVM {llvm}, not {LLVM_MAJOR}")));
        }
        let sysroot = stdout(Command::new(&rustc).args(["--print", "sysroot"])).ok_or(Unfit::Absent)?;
        let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
        if !library.join("core/src/lib.rs").exists() {
            return Err(Unfit::NoSource);
        }
        let clippy = Some(rustc.with_file_name("cargo-clippy")).filter(|path| path.exists());
        Ok(Self { origin, rustc, cargo, clippy, release, llvm })
    }

    fn is_nightly(&self) -> bool {
        self.release.contains("nightly")
    }
}

/// A nightly toolchain that rustup has installed.
pub struct Nightly {
    /// As `rustup run` takes it.
    pub name: String,
    /// The directory of its programs.
    pub bin: PathBuf,
}

impl Nightly {
    /// Whether it can run tests under Miri.
    pub fn has_miri(&self) -> bool {
        self.bin.join("miri").exists()
    }
}

/// The installed nightlies; none where there is no rustup.
pub fn nightlies() -> Vec<Nightly> {
    let list = stdout(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .filter_map(|name| {
            let rustc = stdout(Command::new("rustup").args(["which", "--toolchain", name, "rustc"]))?;
            Some(Nightly { name: name.to_owned(), bin: Path::new(rustc.trim()).parent()?.to_owned() })
        })
        .collect()
}

/// The cargo that runs us.
pub fn host_cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// A bpf-linker.
pub struct Linker {
    /// The program.
    pub path: PathBuf,
    version: Version,
    llvm: Version,
}

impl Linker {
    /// Ours ([`Self::root`]) if it is there, else a fitting one on `PATH`.
    ///
    /// # Errors
    /// Every candidate, with why it does not fit.
    pub fn find() -> Result<Self, NotFound> {
        let on_path = env::var_os("PATH").unwrap_or_default();
        let directories =
            Self::root().map(|root| root.join("bin")).into_iter().chain(env::split_paths(&on_path));
        let mut tried = Vec::new();
        for path in directories.map(|directory| directory.join("bpf-linker")) {
            if !path.exists() {
                continue;
            }
            match Self::probe(path.clone()) {
                Ok(linker) => return Ok(linker),
                Err(unfit) => tried.push(format!("{}: {unfit}", path.display())),
            }
        }
        let what = format!("bpf-linker {LINKER_VERSION} or later with LLVM {LLVM_MAJOR}");
        Err(NotFound { what, tried })
    }

    /// Where `setup` installs it, away from what the user's other projects need. None without a home directory.
    pub fn root() -> Option<PathBuf> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(cache.join(format!("lb/tools/bpf-linker-{LINKER_VERSION}-llvm{LLVM_MAJOR}")))
    }

    fn probe(path: PathBuf) -> Result<Self, Unfit> {
        let version = stdout(Command::new(&path).arg("--version"))
            .as_deref()
            .and_then(|text| Version::after(text, "bpf-linker "))
            .ok_or(Unfit::Absent)?;
        // Its own version does not tell which LLVM it was built with. LLVM does, and exits before it opens a file.
        let llvm = stdout(Command::new(&path).arg("--llvm-args=--version").args([
            "--output",
            "/dev/null",
            "/dev/null",
        ]))
        .as_deref()
        .and_then(|text| Version::after(text, "LLVM version "))
        .ok_or(Unfit::Absent)?;
        if llvm.0 != LLVM_MAJOR {
            return Err(Unfit::Version(format!("LLVM {llvm}, not {LLVM_MAJOR}")));
        }
        if version < LINKER_VERSION {
            return Err(Unfit::Version(format!("{version}, older than {LINKER_VERSION}")));
        }
        Ok(Self { path, version, llvm })
    }
}

/// What a command prints, if it succeeds.
fn stdout(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// Release name and LLVM version in what `rustc -vV` prints.
fn parse_rustc(text: &str) -> Option<(String, Version)> {
    let release = text.lines().find_map(|line| line.strip_prefix("release: "))?;
    let llvm = Version::after(text, "LLVM version: ")?;
    Some((release.to_owned(), llvm))
}

/// A version of three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// The version that follows the first `label` in `text`; what follows its numbers is ignored.
    fn after(text: &str, label: &str) -> Option<Self> {
        let (_, rest) = text.split_once(label)?;
        let mut parts = rest.splitn(3, '.');
        let mut number = || {
            let part = parts.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse().ok()
        };
        Some(Self(number()?, number()?, number()?))
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustup(name) => f.write_str(name),
            Self::Debian => f.write_str(DEBIAN_RUSTC),
        }
    }
}

impl Display for Rust {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, LLVM {})", self.origin, self.release, self.llvm)
    }
}

impl Display for Linker {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, LLVM {})", self.path.display(), self.version, self.llvm)
    }
}

impl Display for Unfit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not there, or it does not run"),
            Self::Version(why) => f.write_str(why),
            Self::NoSource => f.write_str("core's source is missing (rust-src)"),
        }
    }
}

/// A part of the toolchain that is not on this machine.
#[derive(Debug)]
pub struct NotFound {
    what: String,
    tried: Vec<String>,
}

impl Display for NotFound {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "no {}", self.what)?;
        for candidate in &self.tried {
            write!(f, "\n      {candidate}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NotFound {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nightly_tells_its_release_and_its_llvm() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(parse_rustc(text), Some(("1.97.0-nightly".to_owned(), Version(22, 1, 4))));
    }

    #[test]
    fn a_compiler_without_llvm_is_not_understood() {
        assert_eq!(parse_rustc("release: 1.97.0-nightly\n"), None);
    }

    #[test]
    fn a_version_ends_where_its_numbers_end() {
        let debian = "Debian LLVM version 22.1.8\n  Optimized build.\n";
        assert_eq!(Version::after(debian, "LLVM version "), Some(Version(22, 1, 8)));
        let candidate = "LLVM version 23.0.0git-rc2";
        assert_eq!(Version::after(candidate, "LLVM version "), Some(Version(23, 0, 0)));
        assert_eq!(Version::after("bpf-linker 0.13.0\n", "bpf-linker "), Some(LINKER_VERSION));
        assert_eq!(Version::after("bpf-linker next\n", "bpf-linker "), None);
    }

    #[test]
    fn versions_compare_by_number_not_by_text() {
        assert!(Version(0, 9, 15) < LINKER_VERSION);
        assert!(Version(0, 13, 1) > LINKER_VERSION);
    }

    #[test]
    fn an_outer_build_does_not_reach_the_inner_one() {
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_of_outer_build(name), "{name} must be taken out");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
            "RUSTUP_HOME",
            "RUST_BACKTRACE",
            "PATH",
        ] {
            assert!(!is_of_outer_build(name), "{name} must stay");
        }
    }

    #[test]
    fn the_target_has_the_byte_order_of_the_host() {
        assert_eq!(triple("little"), "bpfel-unknown-none");
        assert_eq!(triple("big"), "bpfeb-unknown-none");
    }
}
