//! The Debian package: built, installed and run in an empty layer above the host's own file system.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_tests::agent::built;
use lb_tests::{claim, private_dir};

fn main() -> ExitCode {
    lb_tests::run(vec![
        claim(
            "package and archive are the same byte for byte when they are made again; the package installs, runs as its unit does, and goes without a trace",
            installed,
        ),
        claim(
            "package and archive hold the same files: programs, unit, manuals, completions, documents",
            contents,
        ),
        claim(
            "the package makes user, group and directories without systemd's helpers, too",
            without_helpers,
        ),
        claim("the unit's exposure is below 2.0", exposure),
        claim(
            "what the container file says can be done with the package, and comes to an agent that starts",
            container,
        ),
        claim(
            "the container file of static programs is of what is made, and runs it as lbd and lbctl take it",
            static_container,
        ),
    ])
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The directory of what all tests here look at; made once, as it takes a while.
fn made() -> Result<&'static Path> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let make = || {
        let home = private_dir("package")?;
        package(&home).map(|_| home)
    };
    let made = MADE.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    made.as_deref().map_err(|error| anyhow!("{error}"))
}

/// Packs the programs that were built beside this test.
fn package(to: &Path) -> Result<PathBuf> {
    let programs = built("lbctl")?.parent().context("a directory")?.to_owned();
    let mut command = Command::new(built("xtask")?);
    command.args(["package", "--programs"]).arg(programs).arg("--to").arg(to).current_dir(root());
    done(&mut command)?;
    file_of(to, ".deb")
}

fn file_of(directory: &Path, ending: &str) -> Result<PathBuf> {
    let mut files = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let found = files.find(|path| path.to_str().is_some_and(|name| name.ends_with(ending)));
    found.with_context(|| format!("no {ending} was made"))
}

fn done(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    Ok(text)
}

/// As an administrator would, and as the unit does.
const SCRIPT: &str = r#"
dpkg --install /run/lb.deb
getent group lb && getent passwd lb
test "$(command -v lbctl)" = /usr/bin/lbctl
lbctl --version | grep -q 'layout'
lbctl validate /usr/share/doc/lb/examples/lb.toml
zcat /usr/share/man/man1/lbctl.1.gz | grep -q '^.TH lbctl'
zcat /usr/share/man/man1/lbctl-set-weight.1.gz | grep -q Examples
zcat /usr/share/man/man8/lbd.8.gz | grep -q 'TH lbd'
bash -c 'source /usr/share/bash-completion/completions/lbctl && complete -p lbctl'
test -s /usr/share/zsh/vendor-completions/_lbctl -a -s /usr/share/fish/vendor_completions.d/lbctl.fish
systemd-analyze verify --man=no /usr/lib/systemd/system/lbd.service
! grep -q /usr/local /usr/lib/systemd/system/lbd.service
grep -qx Restart=on-failure /usr/lib/systemd/system/lbd.service
test "$(stat -c '%a %U %G' /etc/lb /var/lib/lb)" = "$(printf '750 root lb\n750 root lb')"

cp -r /usr/share/doc/lb/docs /run/docs && cd /run/docs
./lab.sh up nat
sed -n '/^```toml file/,/^```$/p' first-steps.md | grep -v '```' > /etc/lb/lb.toml
chown root:lb /etc/lb/lb.toml && chmod 640 /etc/lb/lb.toml
chown lb:lb /var/lib/lb && install -d -o lb -g lb /run/lb
mkdir -p /sys/fs/bpf/lb && chown -R lb:lb /sys/fs/bpf/lb && chmod a+x /sys/fs/bpf
caps=+bpf,+perfmon,+net_admin
unit() {
    ./lab.sh in lb setpriv --reuid lb --regid lb --clear-groups --inh-caps=-all,$caps --ambient-caps=$caps \
        --bounding-set=-all,$caps --no-new-privs "$@"
}
unit lbd --check
unit lbd > /run/lbd.log 2>&1 &
lbctl status --wait=healthy --timeout 30s || { cat /run/lbd.log; exit 1; }
test "$(stat -c '%a %G' /run/lb/lbd.sock)" = '660 lb'
./lab.sh ask 20 | grep -E 'b1|b2'
kill $!
./lab.sh down

dpkg --remove lb
! test -e /usr/bin/lbd
test -z "$(ls /sys/fs/bpf/lb)"
dpkg --purge lb
! test -e /var/lib/lb
echo WENT-WELL
"#;

fn installed() -> Result<()> {
    let again = private_dir("again")?;
    package(&again)?;
    for ending in [".deb", ".tar.gz"] {
        let (one, other) = (file_of(made()?, ending)?, file_of(&again, ending)?);
        ensure!(fs::read(&one)? == fs::read(&other)?, "{} and {} differ", one.display(), other.display());
    }
    let text = in_layers(SCRIPT)?;
    ensure!(text.contains("WENT-WELL"), "{text}");
    Ok(())
}

/// Above the host's own files, so that nothing of this stays.
const LAYERS: &str = r#"
set -eux
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf -o mode=0700
for at in etc var usr; do
    mkdir -p /run/layers/$at/upper /run/layers/$at/work
    mount -t overlay overlay -o lowerdir=/$at,upperdir=/run/layers/$at/upper,workdir=/run/layers/$at/work /$at
done
mkdir -p /run/netns
ip link set lo up
unset LB_CONFIG LB_SOCKET LB_STATE_DIR LB_PIN_DIR LB_METRICS
cat <&3 > /run/lb.deb && exec 3<&- && cd /
"#;

/// Runs a script there, with the package as `/run/lb.deb`; returns what it said.
fn in_layers(script: &str) -> Result<String> {
    let (home, package) = (private_dir("layers")?, file_of(made()?, ".deb")?);
    let at = home.join("script");
    fs::write(&at, LAYERS.to_owned() + script)?;
    // Its standard output is a file: what is in the background would keep a pipe open.
    let log = home.join("log");
    let output = fs::File::create(&log)?;
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "timeout",
            "120",
            "bash",
            "-c",
        ])
        // Script and package are in a directory that the first mount hides.
        .arg("script=$(cat \"$0\"); exec 3< \"$1\"; exec bash -c \"$script\"")
        .args([&at, &package])
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    ensure!(status.success(), "{status}\n{text}");
    Ok(text)
}

fn contents() -> Result<()> {
    let (package, archive) = (file_of(made()?, ".deb")?, file_of(made()?, ".tar.gz")?);
    let files = |text: String| -> BTreeSet<String> {
        let names = text
            .lines()
            .filter_map(|line| line.split_whitespace().last())
            .map(|name| name.trim_start_matches("./"));
        names.filter(|name| !name.is_empty() && !name.ends_with('/')).map(str::to_owned).collect()
    };
    let packed = files(done(Command::new("dpkg-deb").arg("--contents").arg(&package))?);
    let archived = files(done(Command::new("tar").arg("--list").arg("--file").arg(&archive))?);
    ensure!(packed == archived, "{:#?}", packed.symmetric_difference(&archived));
    let verbs = done(Command::new(built("lbctl")?).arg("--help"))?;
    let verbs =
        verbs.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<&str> = verbs.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    ensure!(verbs.len() > 20, "{verbs:?}");
    let manuals = verbs
        .iter()
        .filter(|verb| !verb.is_empty())
        .map(|verb| format!("usr/share/man/man1/lbctl-{verb}.1.gz"));
    let others = [
        "usr/bin/lbd",
        "usr/bin/lbctl",
        "usr/lib/systemd/system/lbd.service",
        "usr/lib/sysusers.d/lb.conf",
        "usr/lib/tmpfiles.d/lb.conf",
        "usr/share/man/man1/lbctl.1.gz",
        "usr/share/man/man8/lbd.8.gz",
        "usr/share/bash-completion/completions/lbctl",
        "usr/share/zsh/vendor-completions/_lbctl",
        "usr/share/fish/vendor_completions.d/lbctl.fish",
        "usr/share/lb/lb.schema.json",
        "usr/share/lb/lb.openapi.json",
        "usr/share/lb/prometheus/lb.rules.yml",
        "usr/share/lb/grafana/lb.json",
        "usr/share/doc/lb/copyright",
        "usr/share/doc/lb/examples/lb.toml",
        "usr/share/doc/lb/examples/blue-green.toml",
        "usr/share/doc/lb/examples/kubernetes/lb.yaml",
        "usr/share/doc/lb/docs/first-steps.md",
    ];
    for name in manuals.chain(others.map(str::to_owned)) {
        ensure!(packed.contains(&name), "{name} is not in\n{packed:#?}");
    }
    Ok(())
}

fn without_helpers() -> Result<()> {
    const SCRIPT: &str = r#"
rm /usr/bin/systemd-sysusers /usr/bin/systemd-tmpfiles
userdel lb || true
groupdel lb || true
rm -rf /etc/lb /var/lib/lb
dpkg --install /run/lb.deb
is_whole() {
    test "$(id -gn lb)" = lb
    getent passwd lb | grep ':/var/lib/lb:/usr/sbin/nologin$'
    test "$(stat -c '%a %U %G' /etc/lb /var/lib/lb /run/lb)" = "$(printf '750 root lb\n750 root lb\n755 root root')"
}
is_whole
# Again, as an upgrade does; and where a former version has made the group alone.
dpkg --install /run/lb.deb
is_whole
userdel lb
getent group lb || groupadd --system lb
dpkg --install /run/lb.deb
is_whole
echo WENT-WELL
"#;
    let text = in_layers(SCRIPT)?;
    ensure!(text.contains("WENT-WELL"), "{text}");
    Ok(())
}

fn exposure() -> Result<()> {
    let unit = root().join("deploy/lbd.service");
    let mut command = Command::new("systemd-analyze");
    // In tenths.
    command.args(["security", "--offline=true", "--threshold=19", "--no-pager"]).arg(unit);
    let text = done(&mut command)?;
    ensure!(text.contains("Overall exposure level"), "{text}");
    Ok(())
}

/// An instruction of a container file, and the rest of its line.
type Instruction = (String, String);

fn instructions(file: &str) -> Result<Vec<Instruction>> {
    const KNOWN: [&str; 8] = ["FROM", "COPY", "ADD", "RUN", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"];
    let text = fs::read_to_string(root().join("deploy").join(file))?.replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (word, rest) = line.split_once(' ').with_context(|| format!("{line} says nothing"))?;
            ensure!(KNOWN.contains(&word), "{word} is no instruction: {line}");
            Ok((word.to_owned(), rest.trim().to_owned()))
        })
        .collect()
}

fn of<'a>(instructions: &'a [Instruction], word: &str) -> Result<&'a str> {
    let found = instructions.iter().find(|(it, _)| it == word);
    Ok(&found.with_context(|| format!("there is no {word}: {instructions:?}"))?.1)
}

/// The words of the command that an instruction ends with.
fn words(instruction: &str) -> Result<Vec<String>> {
    let list = instruction.find('[').map(|at| &instruction[at..]).context("a list of words")?;
    serde_json::from_str(list).with_context(|| format!("no list of words: {instruction}"))
}

/// Each step is done as a builder would, above this machine's own Debian. Its mirror is out of reach: what the package needs is here.
fn container() -> Result<()> {
    let file = instructions("Containerfile")?;
    ensure!(of(&file, "FROM")?.starts_with("debian:12"), "{file:?}");
    ensure!(of(&file, "COPY")? == "lb_*.deb /tmp/", "{file:?}");
    let (entry, health) = (words(of(&file, "ENTRYPOINT")?)?, words(of(&file, "HEALTHCHECK")?)?);
    let script = format!(
        r#"
mount -t tmpfs tmp /tmp
mkdir /run/shim
printf '#!/bin/sh\n[ "$1" = update ] || exec /usr/bin/apt-get "$@" --no-upgrade\n' > /run/shim/apt-get && chmod +x /run/shim/apt-get
cp /run/lb.deb /tmp/{package}
PATH=/run/shim:$PATH sh -ec '{run}'
ip link add eth0 type veth peer name eth1 && ip link set eth1 up && ip link set eth0 up && ip addr add 10.0.0.1/8 dev eth0
{entry} --version
printf 'schema = 1\n[dataplane]\ninterfaces = ["eth0"]\nxdp_mode = "generic"\n' > /etc/lb/lb.toml
{entry} > /run/lbd.log 2>&1 &
for try in $(seq 100); do test -e /run/lb/lbd.sock && break; sleep 0.1; done
{health} || {{ cat /run/lbd.log; exit 1; }}
kill $!
lbctl detach
echo WENT-WELL
"#,
        package = "lb_0_amd64.deb",
        run = of(&file, "RUN")?,
        entry = entry.join(" "),
        health = health.join(" "),
    );
    let text = in_layers(&script)?;
    ensure!(text.contains("WENT-WELL"), "{text}");
    Ok(())
}

/// That the programs run in an empty root is tried by `cargo xtask package --musl` itself, which builds them.
fn static_container() -> Result<()> {
    let file = instructions("Containerfile.static")?;
    ensure!(of(&file, "FROM")? == "scratch", "{file:?}");
    ensure!(!file.iter().any(|(word, _)| word == "RUN"), "there is no shell: {file:?}");
    ensure!(of(&file, "ADD")? == "lb-*-linux-musl.tar.gz /", "{file:?}");
    let tree = made()?.join("tree");
    let entry = words(of(&file, "ENTRYPOINT")?)?;
    let health = words(of(&file, "HEALTHCHECK")?)?;
    for command in [&entry, &health] {
        let program =
            command.first().and_then(|path| path.strip_prefix('/')).context("a path: there is no PATH")?;
        ensure!(tree.join(program).exists(), "{program} is not in the archive");
    }
    let of_tree = |command: &[String]| -> Result<Command> {
        let mut words = Command::new(tree.join(command[0].trim_start_matches('/')));
        words.args(&command[1..]).env("LB_SOCKET", "/run/lb-nobody.sock");
        Ok(words)
    };
    done(of_tree(&entry)?.arg("--version"))?;
    // 6: it was understood, and there is no agent.
    let unreachable = of_tree(&health)?.output()?;
    ensure!(unreachable.status.code() == Some(6), "{unreachable:?}");
    Ok(())
}
