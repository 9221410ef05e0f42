//! The status page, in a real browser.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::browser::{Browser, is_installed};
use lb_tests::claim;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Sources};
use libtest_mimic::Trial;

const URL: &str = "http://127.0.0.1:9650/";
const SOON: Duration = Duration::from_secs(40);

pub fn claims() -> Vec<Trial> {
    let claims = vec![
        claim("the status page shows what happens, on a desk and on a phone, and changes nothing", page),
        claim("nobody but this host's own pages can read the status page of a loopback address", strangers),
    ];
    let skip = !is_installed();
    if skip {
        eprintln!(
            "the status page is not looked at: chromium is not installed (`cargo xtask setup` does that)"
        );
    }
    let ignore = |trial: Trial| trial.with_ignored_flag(skip);
    claims.into_iter().map(ignore).collect()
}

/// The lowest contrast of any text with what is behind it (WCAG 2.2, 1.4.3), and the text.
const CONTRAST: &str = r#"(() => {
  const rgb = (text) => (text.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (color) => {
    const [r, g, b] = color.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !node.getClientRects().length || node.closest("noscript, .skip")) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color).slice(0, 3)), light(behind(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < worst[0]) worst = [contrast, texts.currentNode.data];
  }
  return worst;
})()"#;

fn page() -> Result<()> {
    let mut scene = Scene::start(Plan {
        dataplane: "sweep = \"500ms\"".to_owned(),
        health: "[service.health]\ntype = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"100ms\"\n\
                 [service.rollout]\nshares = [1, 25, 100]\nhold = \"600s\"\ntripwire = 0\nanalysis = \"shadow\"\n"
            .to_owned(),
        ..Plan::default()
    })?;
    let load = LoadSpec::http(scene.target(), "/").from(Sources::crowd(2_000)).rate(100.0).concurrency(16);
    let load = Load::start(scene.lab.client(0), load)?;
    let mut browser = Browser::start(scene.lab.balancer().namespace())?;
    browser.resize(1280, 900, false)?;
    browser.go(URL)?;
    browser.wait_for("document.body?.dataset.drawn > 2", SOON)?;
    let revision = scene.json(&["status"])?["revision"].clone();

    // What the operator does, and what happens by itself, is seen without a reload.
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let at = |share: &str| {
        format!("document.querySelector('.rollout .steps li.now')?.textContent === '{share} %'")
    };
    browser.wait_for(&at("1"), SOON)?;
    scene.lbctl(&["rollout", "promote", SERVICE])?;
    browser.wait_for(&at("25"), SOON)?;
    browser.wait_for(
        "[...document.querySelectorAll('.pool .share')].map((it) => it.textContent).join() === '75 %,25 %'",
        SOON,
    )?;
    let rows = "[...document.querySelectorAll('.split .row')].map((it) => it.firstChild.textContent).join()";
    ensure!(browser.evaluate(rows)? == "Desired,In the kernel,New connections,Active traffic");
    browser.wait_for("!document.querySelector('.split').textContent.includes('no data')", SOON)?;
    browser.wait_for("document.querySelectorAll('.spark path').length >= 6", SOON)?;
    drop(scene.servers.remove(0));
    browser.wait_for("document.querySelectorAll('.state.down').length === 1", SOON)?;
    browser.wait_for("document.querySelector('#findings')?.textContent.includes('LB1003')", SOON)?;
    browser.wait_for("document.querySelector('#health').textContent.includes('error')", SOON)?;
    browser.wait_for("document.querySelector('#events').textContent.includes('backend_down')", SOON)?;

    // On every screen, in both colours.
    for (name, width, height, phone) in
        [("desk", 1280, 900, false), ("phone", 390, 844, true), ("small", 320, 568, true)]
    {
        browser.resize(width, height, phone)?;
        for colours in ["light", "dark"] {
            browser.prefer("prefers-color-scheme", colours)?;
            let drawn = browser.evaluate("document.body.dataset.drawn")?;
            browser.wait_for(&format!("document.body?.dataset.drawn !== {drawn}"), SOON)?;
            let wide = browser.evaluate("document.documentElement.scrollWidth > innerWidth")?;
            ensure!(wide == false, "{name}: it has to be scrolled sideways");
            let worst = browser.evaluate(CONTRAST)?;
            ensure!(worst[0].as_f64() >= Some(4.5), "{name}, {colours}: contrast {worst}");
            let pictures = Path::new(env!("CARGO_TARGET_TMPDIR"));
            browser.picture(&pictures.join(format!("status-{name}-{colours}.png")))?;
        }
    }
    browser.prefer("prefers-reduced-motion", "reduce")?;
    let moving = "getComputedStyle(document.querySelector('.steps li.now'), '::before').animationName";
    ensure!(browser.evaluate(moving)? == "none", "nothing moves for those who do not want it");

    // By keyboard, and for those who cannot see it.
    browser.evaluate("document.activeElement.blur()")?;
    browser.press("Tab")?;
    ensure!(browser.evaluate("document.activeElement.className")? == "skip");
    for (what, count) in [
        ("document.querySelectorAll('h1').length", 1),
        ("document.querySelectorAll('[role=status]').length", 2),
        ("document.querySelectorAll('th:not([scope])').length", 0),
        (
            "[...document.querySelectorAll('svg, [role=img]')].filter((it) => !it.ariaLabel && it.ariaHidden !== 'true').length",
            0,
        ),
        ("document.querySelectorAll('input').length - document.querySelectorAll('label input').length", 0),
    ] {
        ensure!(browser.evaluate(what)? == count, "{what}: {}", browser.evaluate(what)?);
    }

    // Of itself only, and a stranger's markup stays text.
    let outside = format!(
        "performance.getEntriesByType('resource').filter((it) => !it.name.startsWith('{URL}')).length"
    );
    ensure!(browser.evaluate(&outside)? == 0);
    let inline = "new Promise((done) => { addEventListener('securitypolicyviolation', (it) => done(it.violatedDirective)); \
                  const script = document.createElement('script'); script.textContent = 'window.broken = 1'; \
                  document.body.append(script); setTimeout(() => done('none'), 2000); })";
    ensure!(browser.evaluate(inline)? == "script-src-elem" && browser.evaluate("window.broken")?.is_null());

    // The filter is the stream's.
    browser.evaluate("{ const it = document.querySelector('#filter'); it.value = 'nobody'; it.dispatchEvent(new Event('input')); }")?;
    browser.wait_for("document.querySelectorAll('.service').length === 0", SOON)?;
    browser.evaluate("{ const it = document.querySelector('#filter'); it.value = 'WE'; it.dispatchEvent(new Event('input')); }")?;
    browser.wait_for("document.querySelectorAll('.service').length === 1", SOON)?;

    // An agent that comes back finds its readers.
    scene.agent.kill9();
    browser.wait_for("document.documentElement.classList.contains('stale')", SOON)?;
    scene.agent.restart()?;
    scene.agent.wait_ready(SOON)?;
    browser.wait_for("document.querySelector('#link').textContent === 'live'", SOON)?;

    let changes = scene.json(&["history", SERVICE])?;
    let by_hand = scene.json(&["status"])?["revision"].as_u64() > revision.as_u64();
    ensure!(by_hand, "what was done here was done by lbctl: {changes:#}");
    load.stop()?;
    Ok(())
}

fn strangers() -> Result<()> {
    let scene = Scene::start(Plan { stable: 1, canary: 0, ..Plan::default() })?;
    let ask = |method: &str, path: &str, host: &str| -> Result<(String, String)> {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--max-time", "5", "--include", "--request", method]);
        curl.args(["--header", &format!("host: {host}"), &format!("http://127.0.0.1:9650{path}")]);
        let said = scene.lab.balancer().namespace().output(curl)?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        Ok((said.split(' ').nth(1).unwrap_or_default().to_owned(), said.to_lowercase()))
    };
    for path in ["/", "/stream", "/status.js"] {
        ensure!(ask("GET", path, "evil.example")?.0 == "421", "{path}");
    }
    ensure!(ask("GET", "/metrics", "lb7.example")?.0 == "200", "scrapers may call it what they want");
    let (code, head) = ask("GET", "/", "localhost:9650")?;
    ensure!(code == "200", "{head}");
    for header in [
        "content-security-policy: default-src 'none'",
        "x-content-type-options: nosniff",
        "frame-ancestors 'none'",
    ] {
        ensure!(head.contains(header), "no {header} in {head}");
    }
    ensure!(!head.contains("access-control-allow-origin"), "{head}");
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        for path in ["/", "/stream", "/metrics"] {
            ensure!(ask(method, path, "127.0.0.1")?.0 == "405", "{method} {path}");
        }
    }
    Ok(())
}
