//! Runs every test there is, and counts.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt, host, setup,
    tally::{Reader, Tally},
    toolchain, vm,
};

/// Which tests to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only tests whose name contains one of these; all if there are none.
    pub filters: Vec<String>,
    /// Leave out what needs root: no kernel, no namespaces.
    pub unprivileged: bool,
}

enum Outcome {
    Ran(Tally),
    Skipped(String),
}

/// A kind of tests, and what runs it.
type Part = (&'static str, fn(&Options) -> Result<Outcome>);

const PARTS: [Part; 5] =
    [("setup", set_up), ("cargo", cargo_tests), ("kernels", kernels), ("Miri", miri), ("fuzz", fuzz)];

/// Runs all parts, also after one has failed; the last line on standard output is the sum of all.
pub fn run(options: &Options) -> ExitCode {
    let mut sum = Tally::default();
    let mut report = Vec::new();
    let start = Instant::now();
    for (name, run) in PARTS {
        println!("== {name}, after {:.0} min ==", start.elapsed().as_secs_f32() / 60.0);
        let begin = Instant::now();
        let outcome = run(options);
        let seconds = begin.elapsed().as_secs_f32();
        let mut tally = Tally::default();
        let line = match outcome {
            Ok(Outcome::Ran(counted)) => {
                let line = counted.to_string();
                tally = counted;
                line
            }
            Ok(Outcome::Skipped(why)) => {
                tally.skipped = 1;
                format!("skipped: {why}")
            }
            Err(error) => {
                tally.failed = 1;
                tally.failures.push(format!("{name}: {error:#}"));
                eprintln!("error: {error:#}");
                format!("failed: {}", error.root_cause())
            }
        };
        let failed = tally.failed > 0;
        sum += tally;
        report.push(format!("{name:<8}{seconds:>7.1} s  {line}"));
        // Nothing runs without a toolchain, and a page of follow-ups would bury the reason.
        if name == "setup" && failed {
            break;
        }
    }
    if !sum.failures.is_empty() {
        // Once more, where nobody has to look for them.
        println!("== failures ==");
        for line in &sum.failures {
            println!("{line}");
        }
    }
    if !sum.slow.is_empty() {
        println!("== slowest ==");
        sum.slow.sort_by(|one, other| other.cmp(one));
        for (took, name) in sum.slow.iter().take(10) {
            println!("{:>6.1} s  {name}", took.as_secs_f32());
        }
    }
    println!("== summary ==");
    for line in report {
        println!("{line}");
    }
    println!("{sum}");
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn set_up(options: &Options) -> Result<Outcome> {
    if !options.unprivileged && !host::is_root() {
        bail!("the kernel tests need root: run as root, or `cargo xtask test --unprivileged` for the others");
    }
    let purpose = if options.unprivileged { setup::Purpose::Build } else { setup::Purpose::Everything };
    setup::run(setup::Options { purpose, ..setup::Options::default() })?;
    Ok(Outcome::Ran(Tally::default()))
}

/// All members: pure code on the host, then programs and maps in the running kernel, and traffic through namespaces.
/// In one call of cargo, as the features of dependencies are those that all members of a call ask for, and another
/// call would build them anew. Without root, the default members.
fn cargo_tests(options: &Options) -> Result<Outcome> {
    count_all(options, || {
        let mut cargo = host::cargo();
        cargo.args(["test", "--no-fail-fast"]);
        if !options.unprivileged {
            cargo.arg("--workspace");
        }
        cargo
    })
}

/// The kernel programs under older kernels than this one.
fn kernels(options: &Options) -> Result<Outcome> {
    if options.unprivileged || !options.filters.is_empty() {
        return Ok(Outcome::Ran(Tally::default()));
    }
    if !cfg!(target_arch = "x86_64") {
        return Ok(Outcome::Skipped("Debian's kernels for clouds are taken for x86-64 only".to_owned()));
    }
    if let Err(error) = apt::install(&apt::MACHINES) {
        return Ok(Outcome::Skipped(format!("the packages cannot be had: {error:#}")));
    }
    Ok(Outcome::Ran(vm::test(&[])?))
}

/// The pure code under Miri, which finds undefined behaviour. A few cases of each property: it is a thousand times
/// slower, and looks for something else than wrong results.
fn miri(options: &Options) -> Result<Outcome> {
    let Some(nightly) = toolchain::nightlies().into_iter().find(toolchain::Nightly::has_miri) else {
        return Ok(Outcome::Skipped(
            "no nightly toolchain with Miri (`rustup toolchain install nightly --component miri rust-src`)"
                .to_owned(),
        ));
    };
    let target_dir = host::target_dir()?;
    let cargo = || {
        let mut cargo = Command::new("rustup");
        cargo.current_dir(host::workspace());
        toolchain::isolate(&mut cargo);
        cargo
            .args(["run", &nightly.name, "cargo", "miri"])
            .env("CARGO_TARGET_DIR", &target_dir)
            .env("PROPTEST_CASES", "8")
            // Property tests look for the file of past failures.
            .env("MIRIFLAGS", "-Zmiri-disable-isolation");
        cargo
    };
    if let Err(error) = host::run(cargo().arg("setup")) {
        return Ok(Outcome::Skipped(format!("Miri cannot build its standard library: {error:#}")));
    }
    count_all(options, || {
        let mut cargo = cargo();
        cargo.args(["test", "--no-fail-fast", "--package", "lb-common", "--lib"]);
        cargo
    })
}

/// Each fuzz target for some seconds, guided by coverage. The flags are those of cargo-fuzz less the sanitizer, which
/// would need a nightly; Miri looks where it would look.
fn fuzz(options: &Options) -> Result<Outcome> {
    const SECONDS: u32 = 10;
    const FLAGS: [&str; 8] = [
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "-Ccodegen-units=1",
        "-Cdebug-assertions",
        "--cfg=fuzzing",
    ];
    let crate_dir = host::workspace().join("fuzz");
    let mut targets = Vec::new();
    let sources = crate_dir.join("fuzz_targets");
    for entry in fs::read_dir(&sources).with_context(|| format!("cannot list {}", sources.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        targets.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    targets.retain(|name| {
        options.filters.is_empty() || options.filters.iter().any(|filter| name.contains(filter))
    });
    targets.sort();
    if targets.is_empty() {
        return Ok(Outcome::Ran(Tally::default()));
    }

    let triple = host_triple()?;
    let target_dir = crate_dir.join("target");
    let mut cargo = host::cargo();
    cargo
        .current_dir(&crate_dir)
        // With a target named, the flags do not reach build scripts and macros.
        .args(["build", "--release", "--bins", "--target", &triple, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    host::run(&mut cargo)?;

    let mut tally = Tally::default();
    for name in &targets {
        let artifacts = crate_dir.join("artifacts").join(name);
        fs::create_dir_all(&artifacts).with_context(|| format!("cannot make {}", artifacts.display()))?;
        let mut fuzzer = Command::new(target_dir.join(&triple).join("release").join(name));
        fuzzer
            .args(["-verbosity=0".to_owned(), format!("-max_total_time={SECONDS}")])
            .arg(format!("-artifact_prefix={}/", artifacts.display()));
        let corpus = crate_dir.join("corpus").join(name);
        if corpus.exists() {
            fuzzer.arg(corpus);
        }
        match host::run(&mut fuzzer) {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                println!("      {error}; the input is in {}", artifacts.display());
                tally.failures.push(format!("fuzz target {name}: {error}"));
                tally.failed += 1;
            }
        }
    }
    Ok(Outcome::Ran(tally))
}

fn host_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not tell its host")?.to_owned())
}

/// Runs the command of `cargo test`, once for each filter (some harnesses take one only), and counts what passes by.
fn count_all(options: &Options, cargo: impl Fn() -> Command) -> Result<Outcome> {
    if options.filters.is_empty() {
        return Ok(Outcome::Ran(count(&mut cargo())?));
    }
    let mut sum = Tally::default();
    for filter in &options.filters {
        sum += count(cargo().arg(filter))?;
    }
    Ok(Outcome::Ran(sum))
}

fn count(command: &mut Command) -> Result<Tally> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| host::cannot_start(command))?;
    let mut reader = Reader::new();
    let stdout = child.stdout.take().context("standard output is a pipe")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        reader.read(&line);
    }
    let mut tally = reader.finish();
    // Does not compile, or died before its closing line.
    if !child.wait()?.success() && tally.failed == 0 {
        tally.failed = 1;
        tally.failures.push("a test program ended before its closing line, or was not built".to_owned());
    }
    Ok(tally)
}
