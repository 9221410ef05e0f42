//! Every command in `docs/` that can be is run, and prints what stands below it.
//!
//! A document is run from its beginning to its end by one shell, in namespaces of its own: mounts (`/etc`, `/run` and
//! `/var/lib` are the host's with an empty layer above them), processes and network, so that its commands can be what people
//! would type.
//!
//! | fence | what is done |
//! |---|---|
//! | `` ```console `` | lines after `# ` or `$ ` are run; the lines below are what they print, `…` stands for anything |
//! | `` ```console exit=3 `` | the last command ends so; `exit=any`: any does, however |
//! | `` ```console skip="why" `` | nothing |
//! | `` ```toml file=/etc/lb/lb.toml ``, and of any other language | the file is written |

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::agent::built;
use lb_tests::{claim, private_dir};
use libtest_mimic::Trial;

fn main() -> ExitCode {
    let mut claims = vec![claim("every link between documents leads somewhere", links)];
    for path in documents() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let blocks = fs::read_to_string(&path).map(|text| blocks(&text)).unwrap_or_default();
        for block in &blocks {
            if let Kind::Skipped(why) = &block.kind {
                let claim = format!("docs/{name}:{} is not run: {why}", block.line);
                claims.push(Trial::test(claim, || Ok(())).with_ignored_flag(true));
            }
        }
        if blocks.iter().any(|block| matches!(block.kind, Kind::Console { .. })) {
            claims.push(claim(&format!("the commands of docs/{name} do what it says"), move || {
                run(&path, &blocks)
            }));
        }
    }
    lb_tests::run(claims)
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn documents() -> Vec<PathBuf> {
    documents_in(&directory())
}

fn documents_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut documents: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "md"))
        .collect();
    documents.sort();
    documents
}

#[derive(Debug)]
struct Block {
    /// Where its fence is, from 1.
    line: usize,
    kind: Kind,
    text: String,
}

#[derive(Debug)]
enum Kind {
    Console {
        exit: Exit,
    },
    File(String),
    Skipped(String),
    /// Of another language, or with something in its fence that is not understood.
    Other(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Every command ends well, but for the last, which ends so.
    With(i32),
    Any,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(fence) = line.trim_start().strip_prefix("```") else { continue };
        let indent = line.len() - line.trim_start().len();
        let mut text = String::new();
        for (_, line) in lines.by_ref().take_while(|(_, line)| line.trim() != "```") {
            text += line.get(indent..).unwrap_or_default();
            text.push('\n');
        }
        blocks.push(Block { line: index + 1, kind: kind(fence), text });
    }
    blocks
}

fn kind(fence: &str) -> Kind {
    let (language, rest) = fence.split_once(' ').unwrap_or((fence, ""));
    let value = |name: &str| rest.strip_prefix(name).and_then(|rest| rest.strip_prefix('='));
    match (language, rest) {
        ("console", "") => Kind::Console { exit: Exit::With(0) },
        ("console", "exit=any") => Kind::Console { exit: Exit::Any },
        ("console", _) => match (value("skip"), value("exit").and_then(|code| code.parse().ok())) {
            (Some(why), _) => Kind::Skipped(why.trim_matches('"').to_owned()),
            (_, Some(code)) => Kind::Console { exit: Exit::With(code) },
            _ => Kind::Other(fence.to_owned()),
        },
        (_, _) if value("file").is_some() => Kind::File(value("file").unwrap_or_default().to_owned()),
        _ => Kind::Other(fence.to_owned()),
    }
}

/// A command, and what should be printed.
struct Step<'a> {
    line: usize,
    command: &'a str,
    expected: Vec<&'a str>,
    exit: Exit,
}

fn steps(block: &Block, exit: Exit) -> Result<Vec<Step<'_>>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    for (index, line) in block.text.lines().enumerate() {
        let number = block.line + 1 + index;
        match (line.strip_prefix("# ").or_else(|| line.strip_prefix("$ ")), steps.last_mut()) {
            (Some(command), last) => {
                if let Some(before) = last
                    && exit != Exit::Any
                {
                    before.exit = Exit::With(0);
                }
                steps.push(Step { line: number, command, expected: Vec::new(), exit });
            }
            (None, Some(step)) => step.expected.push(line),
            (None, None) => bail!("line {number}: {line} is below no command"),
        }
    }
    Ok(steps)
}

/// What the shell prints before each command, and after it with its exit code. No document has such a line.
const BEGIN: &str = "\u{1}begin";
const END: &str = "\u{1}end";

/// Empty layers above the host's own directories, and a BPF file system of its own.
const PRELUDE: &str = "\
set -e
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
for at in etc var/lib; do
    mkdir -p /run/layers/$at/upper /run/layers/$at/work
    mount -t overlay overlay -o lowerdir=/$at,upperdir=/run/layers/$at/upper,workdir=/run/layers/$at/work /$at
done
mkdir -p /run/netns /etc/lb /var/lib/lb
ip link set lo up
unset LB_CONFIG LB_SOCKET LB_STATE_DIR LB_PIN_DIR LB_METRICS
set +e
";

fn run(path: &Path, blocks: &[Block]) -> Result<()> {
    let mut script = PRELUDE.to_owned();
    let mut all = Vec::new();
    for block in blocks {
        match &block.kind {
            Kind::Console { exit } => {
                for step in steps(block, *exit)? {
                    let number = all.len();
                    write!(
                        script,
                        "echo '{BEGIN} {number}'\n{}\necho \"{END} {number} $?\"\n",
                        step.command
                    )?;
                    all.push(step);
                }
            }
            Kind::File(name) => {
                write!(script, "cat > {name} <<'END-OF-DOCUMENT'\n{}END-OF-DOCUMENT\n", block.text)?
            }
            Kind::Skipped(_) => {}
            Kind::Other(fence) => {
                ensure!(
                    !fence.starts_with("console"),
                    "line {}: the fence {fence:?} is not understood",
                    block.line
                );
            }
        }
    }
    let home = private_dir("document")?;
    fs::write(home.join("script"), &script)?;
    let programs = built("lbctl")?.parent().context("a directory")?.to_owned();
    let path_variable = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "timeout",
            "150",
            "bash",
        ])
        // The script is read from a descriptor: the directory that it is in is hidden by the first mount.
        .stdin(fs::File::open(home.join("script"))?)
        .current_dir(path.parent().context("a directory")?)
        .env("PATH", path_variable);
    // What is in the background keeps a pipe open; a file does not wait for it.
    let output = fs::File::create(home.join("output"))?;
    command.stdout(output.try_clone()?).stderr(output);
    let status = command.status().context("cannot start unshare")?;
    let output = String::from_utf8_lossy(&fs::read(home.join("output"))?).into_owned();
    for (number, step) in all.iter().enumerate() {
        let begin = format!("{BEGIN} {number}\n");
        let printed = output.split_once(&begin).map(|(_, rest)| rest);
        let printed =
            printed.with_context(|| format!("line {} was not reached ({status}):\n{output}", step.line))?;
        let (printed, rest) = printed
            .split_once(&format!("{END} {number} "))
            .with_context(|| format!("line {} ({}) did not end:\n{printed}", step.line, step.command))?;
        let code = rest.lines().next().and_then(|code| code.parse().ok()).unwrap_or(-1);
        step.check(printed, code)?;
    }
    Ok(())
}

impl Step<'_> {
    fn check(&self, printed: &str, code: i32) -> Result<()> {
        let Self { line, command, .. } = self;
        if let Exit::With(expected) = self.exit {
            ensure!(
                code == expected,
                "line {line}: `{command}` exited with {code}, not {expected}:\n{printed}"
            );
        }
        let mut lines = printed.lines();
        for expected in self.expected.iter().filter(|expected| !expected.trim().is_empty()) {
            let found = lines.any(|line| is_like(line.trim(), expected.trim()));
            ensure!(found, "line {line}: `{command}` did not print {expected:?} where it should:\n{printed}");
        }
        Ok(())
    }
}

/// Whether a line is as the pattern says, where `…` stands for anything.
fn is_like(line: &str, pattern: &str) -> bool {
    let parts: Vec<&str> = pattern.split('…').collect();
    let [first, .., last] = parts.as_slice() else { return line == pattern };
    let Some(mut rest) = line.strip_prefix(first.trim_end()) else { return false };
    for part in &parts[1..parts.len() - 1] {
        let Some((_, after)) = rest.split_once(part.trim()) else { return false };
        rest = after;
    }
    rest.ends_with(last.trim_start())
}

fn links() -> Result<()> {
    ensure!(is_like("web  203.0.113.10:80/tcp  v1  10 %  3/3", "web…v1…10 %…") && !is_like("a b", "a…c"));
    ensure!(anchor("## In the `dsr` modes: what's left?") == "in-the-dsr-modes-whats-left");
    for document in documents().into_iter().chain(documents_in(&directory().join(".."))) {
        let text = fs::read_to_string(&document)?;
        let home = document.parent().context("a directory")?;
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { document.clone() } else { home.join(file) };
            ensure!(target.exists(), "{} has a link to {link}", document.display());
            if !place.is_empty() {
                let target = fs::read_to_string(&target)?;
                let found = target.lines().any(|line| line.starts_with('#') && anchor(line) == place);
                ensure!(found, "{}: no heading is {link}", document.display());
            }
        }
    }
    Ok(())
}

/// What a link to a heading says, as GitHub has it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|&c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
