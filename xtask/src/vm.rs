//! The kernel programs under older kernels: Debian's, each in a virtual machine of its own that lives in memory.
//!
//! A machine has one process (`/init`, a script) and a file system of what the tests need: the test programs with their
//! libraries, busybox, and the modules of virtual interfaces. QEMU emulates the processor, so that it works wherever this
//! does, within another virtual machine, too.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apt, host,
    tally::{Reader, Tally},
};

/// The kernels that every program must load on: the oldest that is supported, and the last before the verifier of today.
pub const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// The test programs that run there.
const TESTS: [&str; 2] = ["budgets", "data_path"];

/// Frames of the comparison of kernel and host: emulation is some twenty times slower than the machine.
const FRAMES: u32 = 30_000;

/// Modules of virtual interfaces, each after those that it needs.
const MODULES: [&str; 5] = ["veth", "dummy", "llc", "stp", "bridge"];

/// What `/init` calls by name.
const APPLETS: [&str; 7] = ["sh", "mount", "insmod", "ip", "echo", "poweroff", "sleep"];

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
    let programs = programs()?;
    let mut sum = Tally::default();
    for version in kernels {
        let kernel = Kernel::unpack(version, &place).with_context(|| format!("Linux {version}"))?;
        println!("      {}", kernel.package);
        let disk = kernel.file_system(&programs, &place)?;
        sum += boot(&kernel, &disk)?;
        fs::remove_file(&disk)?;
    }
    Ok(sum)
}

/// Builds the test programs, and says where they are.
fn programs() -> Result<Vec<PathBuf>> {
    let mut cargo = host::cargo();
    cargo.args(["test", "--workspace", "--no-run", "--message-format=json"]);
    for name in TESTS {
        cargo.args(["--test", name]);
    }
    let output = cargo.stderr(Stdio::inherit()).output().with_context(|| host::cannot_start(&cargo))?;
    ensure!(output.status.success(), "the tests do not compile");
    let messages = String::from_utf8(output.stdout)?;
    // `"executable":"/…"`: a whole parser of JSON would be the longest part of this program's build.
    let executables = messages.lines().filter_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    // The programs that they start are built along with them.
    let is_test = |path: &PathBuf| TESTS.iter().any(|name| name_of(path).starts_with(&format!("{name}-")));
    let programs: Vec<_> = executables.filter(is_test).collect();
    ensure!(programs.len() == TESTS.len(), "cargo built {programs:?} instead of {TESTS:?}");
    Ok(programs)
}

/// A kernel of Debian's, unpacked.
struct Kernel {
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
        Ok(Self { package, root })
    }

    fn image(&self) -> Result<PathBuf> {
        let entries = fs::read_dir(self.root.join("boot"))?.flatten().map(|entry| entry.path());
        let mut images = entries.filter(|path| name_of(path).starts_with("vmlinuz"));
        images.next().with_context(|| format!("{} has no kernel", self.package))
    }

    /// A compressed archive of everything, as the kernel unpacks it into memory.
    fn file_system(&self, programs: &[PathBuf], place: &Path) -> Result<PathBuf> {
        let root = place.join(format!("root-{}", std::process::id()));
        let made = self.fill(&root, programs).and_then(|()| {
            let disk = root.with_extension("cpio.gz");
            let pack = format!("find . | busybox cpio -o -H newc | gzip -1 > '{}'", disk.display());
            let mut shell = Command::new("sh");
            shell.args(["-c", &pack]).current_dir(&root).stderr(Stdio::null());
            ensure!(shell.status()?.success(), "cannot pack {}", root.display());
            Ok(disk)
        });
        fs::remove_dir_all(&root)?;
        made
    }

    fn fill(&self, root: &Path, programs: &[PathBuf]) -> Result<()> {
        for directory in ["bin", "proc", "sys", "dev", "run", "tmp", "etc", "modules"] {
            fs::create_dir_all(root.join(directory))?;
        }
        copy(&which("busybox")?, &root.join("bin/busybox"))?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        for (program, name) in programs.iter().zip(TESTS) {
            copy(program, &root.join("bin").join(name))?;
            // Nobody debugs there, and all of it is in memory.
            host::run(Command::new("strip").arg("-g").arg(root.join("bin").join(name)))?;
            for library in libraries(program)? {
                copy(&library, &root.join(library.strip_prefix("/")?))?;
            }
        }
        for module in MODULES {
            let found = find(&self.root, &format!("{module}.ko"))?;
            let found = found.with_context(|| format!("{} has no module {module}", self.package))?;
            let plain = root.join("modules").join(format!("{module}.ko"));
            if found.extension().is_some_and(|end| end == "xz") {
                let output = Command::new("xz").arg("-dc").arg(&found).output().context("xz")?;
                ensure!(output.status.success(), "cannot unpack {}", found.display());
                fs::write(plain, output.stdout)?;
            } else {
                copy(&found, &plain)?;
            }
        }
        let init = root.join("init");
        fs::write(&init, script())?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
}

/// The only process there.
fn script() -> String {
    let mut script = "#!/bin/sh\nexport PATH=/bin\n\
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
        mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mount -t bpf bpf /sys/fs/bpf\n\
        ip link set lo up\n"
        .to_owned();
    for module in MODULES {
        script += &format!("insmod /modules/{module}.ko\n");
    }
    script += &format!("export LB_FRAMES={FRAMES}\necho '{BEGIN}'\nfailed=0\n");
    for name in TESTS {
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
            println!("{line}");
            reader.read(&line);
        } else if line.ends_with(BEGIN) {
            begun = true;
        } else {
            before.push(line);
        }
    }
    child.wait()?;
    let tally = reader.finish();
    match ended {
        Some(failed) => {
            ensure!(failed == (tally.failed > 0), "a test program did not get to its end");
            Ok(tally)
        }
        None => bail!("{} stopped before its tests were over:\n{}", kernel.package, before.join("\n")),
    }
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
    let found = env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file());
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
        let script = script();
        let known = |word: &str| APPLETS.contains(&word) || TESTS.contains(&word) || word == "export";
        for command in script.lines().skip(1).flat_map(|line| line.split("; ")) {
            let word = command.split_whitespace().next().unwrap_or_default();
            assert!(known(word) || word == "failed=0", "{command}");
        }
    }
}
