//! Everything that is not `cargo build`: setting the machine up, all tests, lint, demo, benchmarks.

mod apt;
mod host;
mod lint;
mod package;
mod run;
mod setup;
mod tally;
mod test;
mod toolchain;
mod vm;

use std::{env, path::PathBuf, process::ExitCode};

const HELP: &str = "\
Usage: cargo xtask COMMAND

  setup [--check] [--build-only] [--musl]
        Installs what is missing: a BPF-capable rustc, bpf-linker, Debian packages, bpffs.
        --check       changes nothing, and fails if something is missing
        --build-only  only what `cargo build` needs, nothing for tests and demo
        --musl        also what `package --musl` needs
  test [--unprivileged] [FILTER…]
        Runs every test there is, or those whose name contains a FILTER.
        --unprivileged  leaves out what needs root: no kernel, no namespaces
  vm [VERSION…]
        Runs the tests of the kernel programs under Debian's kernels 6.1 and 6.12 (or VERSION), in QEMU.
  lint  Checks formatting, and all code with warnings as errors.
  demo [ARGUMENT…]
        Shows the main job on real traffic: a canary, a failure, a rollback.
  bench [ARGUMENT…]
        Measures: cost of a packet, of a publish, of a rollback.
  package [--musl] [--programs DIR] [--to DIR]
        Builds what is shipped, into target/package: a Debian package and an archive.
        --musl      also an archive of programs that need no library of the system; they are tried in an empty root directory
        --programs  packs these instead of building them
        --to        another place for it; packages of lb that are there go";

/// What the user asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Setup(setup::Options),
    Test(test::Options),
    Lint,
    Package(package::Options),
    /// Versions of kernels.
    Vm(Vec<String>),
    /// A program of `tests/`, with its arguments.
    Program(&'static str, Vec<String>),
}

fn main() -> ExitCode {
    let command = match parse(env::args().skip(1)) {
        Ok(command) => command,
        Err(mistake) => {
            eprintln!("error: {mistake}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let result = match command {
        Command::Help => {
            println!("{HELP}");
            Ok(())
        }
        Command::Setup(options) => setup::run(options),
        Command::Test(options) => return test::run(&options),
        Command::Lint => lint::run(),
        Command::Package(options) => package::run(&options),
        Command::Vm(kernels) => vm::run(&kernels),
        Command::Program(name, arguments) => run::exec(name, &arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// By hand, as an argument parser would take most of the time until something is to be seen on a fresh machine.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let Some(verb) = arguments.next() else {
        return Err("no command".to_owned());
    };
    let mut command = match verb.as_str() {
        "help" | "-h" | "--help" => return Ok(Command::Help),
        "setup" => Command::Setup(setup::Options::default()),
        "test" => Command::Test(test::Options::default()),
        "lint" => Command::Lint,
        "package" => Command::Package(package::Options::default()),
        "vm" => Command::Vm(Vec::new()),
        "demo" => return Ok(Command::Program("demo", arguments.collect())),
        "bench" => return Ok(Command::Program("bench", arguments.collect())),
        _ => return Err(format!("unknown command: {verb}")),
    };
    while let Some(argument) = arguments.next() {
        match (&mut command, argument.as_str()) {
            (_, "-h" | "--help") => return Ok(Command::Help),
            (Command::Setup(options), "--check") => options.check = true,
            (Command::Setup(options), "--build-only") => options.purpose = setup::Purpose::Build,
            (Command::Setup(options), "--musl") => options.musl = true,
            (Command::Package(options), "--musl") => options.musl = true,
            (Command::Package(options), "--programs") => {
                options.programs = arguments.next().map(PathBuf::from)
            }
            (Command::Package(options), "--to") => options.to = arguments.next().map(PathBuf::from),
            (Command::Test(options), "--unprivileged") => options.unprivileged = true,
            (Command::Test(options), filter) if !filter.starts_with('-') => {
                options.filters.push(argument);
            }
            (Command::Vm(kernels), version) if version.starts_with(|c: char| c.is_ascii_digit()) => {
                kernels.push(argument);
            }
            _ => return Err(format!("`{verb}` does not take {argument}")),
        }
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_and_filters_stand_in_any_order() {
        let options =
            test::Options { unprivileged: true, filters: vec!["drain".to_owned(), "reset".to_owned()] };
        assert_eq!(parsed("test drain --unprivileged reset"), Ok(Command::Test(options)));
        let options = setup::Options { check: true, purpose: setup::Purpose::Build, musl: true };
        assert_eq!(parsed("setup --build-only --musl --check"), Ok(Command::Setup(options)));
    }

    #[test]
    fn programs_get_their_arguments_untouched() {
        let arguments = vec!["--with".to_owned(), "name=pin".to_owned(), "--help".to_owned()];
        assert_eq!(parsed("bench --with name=pin --help"), Ok(Command::Program("bench", arguments)));
    }

    #[test]
    fn a_package_is_of_programs_and_goes_somewhere() {
        let options = package::Options { programs: Some("a".into()), to: Some("b".into()), musl: false };
        assert_eq!(parsed("package --to b --programs a"), Ok(Command::Package(options)));
    }

    #[test]
    fn a_mistake_is_named() {
        assert_eq!(parsed("tset"), Err("unknown command: tset".to_owned()));
        assert_eq!(parsed("lint --fix"), Err("`lint` does not take --fix".to_owned()));
        assert_eq!(parsed("vm latest"), Err("`vm` does not take latest".to_owned()));
        assert_eq!(parsed("test --check"), Err("`test` does not take --check".to_owned()));
        assert_eq!(parsed(""), Err("no command".to_owned()));
    }
}
