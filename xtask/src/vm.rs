//! The kernel programs under older kernels: Debian's, each in a virtual machine of its own that lives in memory.
//!
//! A machine has one process (`/init`, a script) and a file system of what the tests need: the test programs with their
//! libraries, busybox, and the modules of virtual interfaces. QEMU emulates the processor, so that it works wherever this
//! does, within another virtual machine, too. Each machine has one processor, and all of them run at the same time.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{
    apt, host,
    tally::{Reader, Tally},
};

/// The kernels that every program must load on: the oldest that is supported, and the last before the verifier of today.
pub const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// What a machine has beside its kernel and busybox.
struct Outfit {
    /// Test programs, in the order in which they run.
    tests: &'static [&'static str],
    /// Programs of the workspace that they start.
    agent: &'static [&'static str],
    /// Programs of this machine that they start.
    tools: &'static [&'static str],
    /// Modules, each after those that it needs.
    modules: &'static [&'static str],
}

/// What depends on the kernel's verifier, and a few virtual interfaces.
const PROGRAMS: Outfit = Outfit {
    tests: &["budgets", "data_path"],
    agent: &[],
    tools: &[],
    modules: &["veth", "dummy", "llc", "stp", "bridge"],
};

/// VLAN devices, bonds and tunnels, which few kernels have that tests run under.
const DEVICES: Outfit = Outfit {
    tests: &["devices"],
    agent: &["lbd", "lbctl"],
    tools: &["ip", "ethtool"],
    modules: &[
        "garp",
        "mrp",
        "8021q",
        "tls",
        "bonding",
        "udp_tunnel",
        "ip6_udp_tunnel",
        "ip_tunnel",
        "tunnel4",
        "tunnel6",
        "ipip",
        "sit",
        "ip6_tunnel",
        "fou",
    ],
};

/// The kernel that has those: one is enough.
const HAS_DEVICES: &str = "6.12";

/// Frames of the comparison of kernel and host: emulation is some twenty times slower than the machine.
const FRAMES: u32 = 8_000;

/// What `/init` calls by name.
const APPLETS: [&str; 7] = ["sh", "mount", "insmod", "ifconfig", "echo", "poweroff", "sleep"];

/// What the console shows around the tests.
const BEGIN: &str = "== tests begin ==";
const END: &str = "== tests ended: ";

/// Runs the tests under each kernel, by the first numbers of its version.
///
/// # Errors
/// If a package cannot be had, a machine does not start, or a test fails.
pub fn run(kernels: &[String]) -> Result<()> {
    apt::install(&apt::MACHINES)?;
    let sum = test(kernels)?;
    println!("{sum}");
    ensure!(sum.failed == 0, "{} failed", sum.failed);
    Ok(())
}

/// The same, counted; all of [`KERNELS`] if none is named.
///
/// # Errors
/// If a package cannot be had or a machine does not start.
pub fn test(kernels: &[String]) -> Result<Tally> {
    let all: Vec<String> = KERNELS.iter().map(|&version| version.to_owned()).collect();
    let kernels = if kernels.is_empty() { &all } else { kernels };
    let place = host::target_dir()?.join("vm");
    let built = build()?;
    let mut machines = Vec::new();
    for version in kernels {
        let kernel = Kernel::unpack(version, &place).with_context(|| format!("Linux {version}"))?;
        println!("      {}", kernel.package);
        let mut outfits = vec![&PROGRAMS];
        if version == HAS_DEVICES {
            outfits.push(&DEVICES);
        }
        let disk = kernel.file_system(&outfits, &built, &place)?;
        machines.push((kernel, disk));
    }
    thread::scope(|scope| {
        let run = |(kernel, disk)| scope.spawn(move || boot(kernel, disk));
        let running: Vec<_> = machines.iter().map(|(kernel, disk)| run((kernel, disk))).collect();
        let mut sum = Tally::default();
        for machine in running {
            sum += machine.join().map_err(|_| anyhow!("a machine's console cannot be read"))??;
        }
        Ok(sum)
    })
}

/// Builds all programs and tests, and says where they are.
fn build() -> Result<Vec<PathBuf>> {
    let mut cargo = host::cargo();
    // All of them, though few are needed: what is built for tests alone does not contain the agent.
    cargo.args(["test", "--workspace", "--no-run", "--message-format=json"]);
    let output = cargo.stderr(Stdio::inherit()).output().with_context(|| host::cannot_start(&cargo))?;
    ensure!(output.status.success(), "the tests do not compile");
    let messages = String::from_utf8(output.stdout)?;
    // `"executable":"/…"`: a whole parser of JSON would be the longest part of this program's build.
    let executables = messages.lines().filter_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    Ok(executables.collect())
}

/// The one that was built of a program, or of a test (which has a hash in its name).
fn find_built<'a>(built: &'a [PathBuf], name: &str, is_test: bool) -> Result<&'a Path> {
    let is_it = |path: &&PathBuf| match name_of(path).strip_prefix(name) {
        Some(rest) if is_test => rest.starts_with('-'),
        rest => rest == Some(""),
    };
    let found = built.iter().find(is_it).with_context(|| format!("cargo built no {name}: {built:?}"))?;
    Ok(found)
}

/// A kernel of Debian's, unpacked.
struct Kernel {
    version: String,
    package: String,
    root: PathBuf,
}

impl Kernel {
    /// The newest one of a version that this Debian has.
    fn unpack(version: &str, place: &Path) -> Result<Self> {
        let package = newest(version)?;
        let root = place.join(&package);
        if !root.join("boot").exists() {
            fs::create_dir_all(place)?;
            let archives = || -> Result<Vec<PathBuf>> {
                let entries =
                    fs::read_dir(place)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
                let ours = format!("{package}_");
                Ok(entries.into_iter().filter(|path| name_of(path).starts_with(&ours)).collect())
            };
            host::run(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(place))?;
            let archive = archives()?.pop().context("apt-get downloaded nothing")?;
            host::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&root))?;
            fs::remove_file(&archive)?;
        }
        Ok(Self { version: version.to_owned(), package, root })
    }

    fn image(&self) -> Result<PathBuf> {
        let entries = fs::read_dir(self.root.join("boot"))?.flatten().map(|entry| entry.path());
        let mut images = entries.filter(|path| name_of(path).starts_with("vmlinuz"));
        images.next().with_context(|| format!("{} has no kernel", self.package))
    }

    /// An archive of everything, as the kernel unpacks it into memory. (Not compressed: that costs an emulated processor more.)
    fn file_system(&self, outfits: &[&Outfit], built: &[PathBuf], place: &Path) -> Result<PathBuf> {
        let root = place.join(format!("root-{}", std::process::id()));
        let made = self.fill(&root, outfits, built).and_then(|()| {
            let disk = place.join(format!("{}-{}.cpio", self.version, std::process::id()));
            let pack = format!("find . | busybox cpio -o -H newc > '{}'", disk.display());
            let mut shell = Command::new("sh");
            shell.args(["-c", &pack]).current_dir(&root).stderr(Stdio::null());
            ensure!(shell.status()?.success(), "cannot pack {}", root.display());
            Ok(disk)
        });
        fs::remove_dir_all(&root)?;
        made
    }

    fn fill(&self, root: &Path, outfits: &[&Outfit], built: &[PathBuf]) -> Result<()> {
        for directory in ["bin", "proc", "sys", "dev", "run", "tmp", "etc", "modules"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let bin = root.join("bin");
        copy(&which("busybox")?, &bin.join("busybox"))?;
        for applet in APPLETS {
            symlink("busybox", bin.join(applet))?;
        }
        for outfit in outfits {
            let programs = outfit.tests.iter().map(|name| (name, true));
            for (name, is_test) in programs.chain(outfit.agent.iter().map(|name| (name, false))) {
                let program = bin.join(name);
                copy_with_libraries(find_built(built, name, is_test)?, &program, root)?;
                // Nobody debugs there, and all of it is in memory.
                host::run(Command::new("strip").arg("-g").arg(&program))?;
            }
            for name in outfit.tools {
                copy_with_libraries(&which(name)?, &bin.join(name), root)?;
            }
            for module in outfit.modules {
                self.copy_module(module, &root.join("modules"))?;
            }
        }
        let init = root.join("init");
        fs::write(&init, script(outfits))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn copy_module(&self, module: &str, to: &Path) -> Result<()> {
        let found = find(&self.root, &format!("{module}.ko"))?;
        let found = found.with_context(|| format!("{} has no module {module}", self.package))?;
        let plain = to.join(format!("{module}.ko"));
        if found.extension().is_some_and(|end| end == "xz") {
            let output = Command::new("xz").arg("-dc").arg(&found).output().context("xz")?;
            ensure!(output.status.success(), "cannot unpack {}", found.display());
            fs::write(plain, output.stdout)?;
            Ok(())
        } else {
            copy(&found, &plain)
        }
    }
}

/// The only process there.
fn script(outfits: &[&Outfit]) -> String {
    let mut script = "#!/bin/sh\nexport PATH=/bin\n\
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
        mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mount -t bpf bpf /sys/fs/bpf\n\
        ifconfig lo up\n"
        .to_owned();
    for module in outfits.iter().flat_map(|outfit| outfit.modules) {
        script += &format!("insmod /modules/{module}.ko\n");
    }
    script += &format!("export LB_FRAMES={FRAMES}; export LB_PROGRAMS_ONLY=1\necho '{BEGIN}'\nfailed=0\n");
    for name in outfits.iter().flat_map(|outfit| outfit.tests) {
        script += &format!("{name} --color never || failed=1\n");
    }
    script += &format!("echo \"{END}$failed\"\nsleep 1\npoweroff -f\n");
    script
}

/// Runs a machine to its end, shows what its tests say, and counts.
fn boot(kernel: &Kernel, disk: &Path) -> Result<Tally> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // All that the emulator can do: a driver that misses something says so, and so does the test.
    qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "3072", "-smp", "1", "-nographic", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel.image()?)
        .arg("-initrd")
        .arg(disk)
        .args(["-append", "console=ttyS0 rdinit=/init quiet panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = qemu.spawn().with_context(|| host::cannot_start(&qemu))?;
    let console = BufReader::new(child.stdout.take().context("standard output is a pipe")?);
    let mut reader = Reader::new();
    let mut before = Vec::new();
    let (mut begun, mut ended) = (false, None);
    for line in console.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        if let Some(failed) = line.strip_prefix(END) {
            ended = Some(failed != "0");
        } else if begun {
            println!("{:<5}| {line}", kernel.version);
            reader.read(&line);
        } else if line.ends_with(BEGIN) {
            begun = true;
        } else {
            before.push(line);
        }
    }
    child.wait()?;
    fs::remove_file(disk)?;
    let package = &kernel.package;
    let Some(failed) = ended else {
        bail!("{package} stopped before its tests were over:\n{}", before.join("\n"));
    };
    let mut tally = reader.finish();
    ensure!(failed == (tally.failed > 0), "{package}: a test program did not get to its end");
    ensure!(tally.skipped == 0, "{package} lacks what its tests need");
    let names = tally.failures.iter_mut().chain(tally.slow.iter_mut().map(|(_, name)| name));
    names.for_each(|name| *name = format!("{}: {name}", kernel.version));
    Ok(tally)
}

/// The package of the newest kernel of a version: what Debian's meta package of it depends on.
fn newest(version: &str) -> Result<String> {
    let wanted = format!("linux-image-{version}.");
    for meta in [format!("linux-image-{version}-cloud-amd64"), "linux-image-cloud-amd64".to_owned()] {
        let output = Command::new("apt-cache").args(["depends", "--important", &meta]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut packages = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        if let Some(package) = packages.find(|package| package.starts_with(&wanted)) {
            return Ok(package.to_owned());
        }
    }
    bail!("this Debian has no kernel {version} for clouds: it has what `apt-cache search linux-image` shows")
}

/// The shared libraries of a program, and what loads them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn which(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|directory| directory.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("there is no {program}"))
}

/// The first file whose name begins so, below a directory.
fn find(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if name_of(&entry.path()).starts_with(name) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Copies a program to a place below `root`, and its libraries to where it looks for them.
fn copy_with_libraries(from: &Path, to: &Path, root: &Path) -> Result<()> {
    copy(from, to)?;
    libraries(from)?.iter().try_for_each(|library| copy(library, &root.join(library.strip_prefix("/")?)))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_script_is_there() {
        let outfits = [&PROGRAMS, &DEVICES];
        let script = script(&outfits);
        let is_test = |word: &&str| outfits.iter().any(|outfit| outfit.tests.contains(word));
        let known = |word: &str| APPLETS.contains(&word) || is_test(&word) || word == "export";
        for command in script.lines().skip(1).flat_map(|line| line.split("; ")) {
            let word = command.split_whitespace().next().unwrap_or_default();
            assert!(known(word) || word == "failed=0", "{command}");
        }
    }

    #[test]
    fn programs_and_tests_of_like_names_are_told_apart() {
        let built: Vec<PathBuf> =
            ["/t/deps/lbd-0a", "/t/lbd", "/t/deps/lbd_devices-0b", "/t/deps/devices-0c"]
                .map(PathBuf::from)
                .into();
        assert_eq!(find_built(&built, "lbd", false).unwrap(), Path::new("/t/lbd"));
        assert_eq!(find_built(&built, "devices", true).unwrap(), Path::new("/t/deps/devices-0c"));
        assert!(find_built(&built, "lbctl", false).is_err());
    }
}
