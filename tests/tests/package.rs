//! The Debian package: built, installed and run in an empty layer above the host's own file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::built;
use lb_tests::{claim, private_dir};

fn main() -> ExitCode {
    lb_tests::run(vec![
        claim(
            "the package is the same byte for byte when it is made again, installs, runs as its unit does, and goes without a trace",
            installed,
        ),
        claim("the unit's exposure is below 2.0", exposure),
        claim("the container file says what a builder understands, of files that are made", container),
    ])
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Packs the programs that were built beside this test.
fn package(to: &Path) -> Result<PathBuf> {
    let programs = built("lbctl")?.parent().context("a directory")?.to_owned();
    let mut command = Command::new(built("xtask")?);
    command.args(["package", "--programs"]).arg(programs).arg("--to").arg(to).current_dir(root());
    done(&mut command)?;
    let mut files = fs::read_dir(to)?.flatten().map(|entry| entry.path());
    files.find(|path| path.extension().is_some_and(|kind| kind == "deb")).context("no package was made")
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
    let home = private_dir("package")?;
    let package = package(&home)?;
    let again = self::package(&private_dir("again")?)?;
    ensure!(fs::read(&package)? == fs::read(&again)?, "{} and {} differ", package.display(), again.display());
    let script = home.join("script");
    fs::write(&script, SCRIPT)?;
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
        .args([&script, &package])
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    ensure!(status.success() && text.contains("WENT-WELL"), "{status}\n{text}");
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

fn container() -> Result<()> {
    const KNOWN: [&str; 8] = ["FROM", "COPY", "RUN", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"];
    let text = fs::read_to_string(root().join("deploy/Containerfile"))?.replace("\\\n", " ");
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).collect();
    ensure!(lines.first().is_some_and(|line| line.starts_with("FROM debian:12")), "{lines:?}");
    for line in &lines {
        let word = line.split_whitespace().next().unwrap_or_default();
        ensure!(KNOWN.contains(&word), "{word} is no instruction: {line}");
        if let Some(list) = line.find('[').map(|at| &line[at..]) {
            serde_json::from_str::<Vec<String>>(list).with_context(|| format!("no list of words: {line}"))?;
        }
    }
    ensure!(lines.iter().any(|line| line.starts_with("COPY target/package/lb_*.deb")), "{lines:?}");
    Ok(())
}
