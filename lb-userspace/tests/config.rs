//! The configuration as its users meet it: texts in, configurations or mistakes out.
//!
//! `UPDATE_EXPECT=1` writes what is expected anew; look at the difference before you commit it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lb_userspace::config::{
    self, BackendKey, Code, Config, HealthCheck, Loaded, Mode, OnDown, OnEmpty, Protocol, Question, Service,
    Severity, SplitKey, Style, Tracking, XdpMode, json_schema,
};

fn fixtures() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let paths = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|it| it == "toml")).collect();
    paths.sort();
    paths.iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap())).collect()
}

fn file_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap()
}

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// Compares with what stands in the file, or writes it there if asked to.
fn expect(path: &Path, actual: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(path, actual).unwrap();
        return Ok(());
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!("{}: expected\n{expected}\nbut got\n{actual}", path.display()))
}

fn good(text: &str) -> Config {
    config::parse(text, "lb.toml").map(|loaded| loaded.config).unwrap_or_else(|found| panic!("{found}"))
}

#[test]
fn each_mistake_is_shown_with_its_place_and_remedy() {
    let mut wrong = Vec::new();
    for (path, text) in fixtures() {
        let shown = match config::parse(&text, file_name(&path)) {
            Ok(loaded) => loaded.warnings.render(Style::Plain),
            Err(found) => found.render(Style::Plain),
        };
        assert!(!shown.is_empty(), "{path} has nothing to complain about");
        wrong.extend(expect(Path::new(&path).with_extension("stderr").as_path(), &shown).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_has_a_fixture() {
    let mut seen = BTreeSet::new();
    for (path, text) in fixtures() {
        let name = file_name(&path);
        let found = config::parse(&text, name).map_or_else(|found| found, |loaded| loaded.warnings);
        seen.extend(found.iter().map(|found| found.code));
    }
    let missing: Vec<&Code> = Code::ALL.iter().filter(|code| !seen.contains(code)).collect();
    assert!(missing.is_empty(), "no fixture shows {missing:?}");
}

#[test]
fn mistakes_are_told_to_programs_with_lines_and_columns() {
    let text = "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\nflows = \"ü\"\nxdp_mood = \"auto\"\n";
    let found = config::parse(text, "lb.toml").unwrap_err();
    let reports = serde_json::to_value(found.reports()).unwrap();
    assert_eq!(
        reports,
        serde_json::json!([
            {
                "code": "LB0103", "severity": "error", "file": "lb.toml", "path": "dataplane.flows",
                "message": "text where a whole number from 1 to 134217728 belongs",
                "label": "expected a whole number from 1 to 134217728",
                "line": 4, "column": 9, "end": {"line": 4, "column": 12},
            },
            {
                "code": "LB0101", "severity": "error", "file": "lb.toml", "path": "dataplane.xdp_mood",
                "message": "there is no key `xdp_mood`",
                "label": "not a key of `[dataplane]`",
                "line": 5, "column": 1, "end": {"line": 5, "column": 9},
                "help": ["did you mean `xdp_mode`?"],
            },
        ])
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = config::load("/nonexistent/lb.toml").unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration /nonexistent/lb.toml: "), "{error}");
}

/// The example of the documentation, as people will copy it.
const EXAMPLE: &str = r#"
schema = 1
[dataplane]
interfaces = ["eth0"]
xdp_mode = "auto"             # auto | native | generic; auto says which it got, and warns on generic
flows = 1048576               # room for tracked flows
half_open = 131072
hash_seed = "00112233445566778899aabbccddeeff"   # optional; the same on every balancer of a fleet

[[service]]
name = "checkout"
vip = "203.0.113.10"          # v4 or v6
port = 443                    # 0 = every port
protocol = "tcp"              # tcp | udp
mode = "nat"                  # nat | full-nat | dsr-l2 | dsr-ipip | dsr-gue
split_key = "source-ip"       # source-ip | source-net | 5-tuple
backend_key = "5-tuple"       # 5-tuple | source-ip
tracking = "flow"             # udp only: flow | none
table_size = 16381            # a prime; at least 100 slots a backend, warned about below that
on_down = "keep"              # established flows of a backend that health took out: keep | reset
on_empty = "reset"            # reset | drop | pass: what a new flow gets when no backend may take it
panic_threshold = 50          # percent healthy below which health is ignored in a pool; 0 = never

  [service.health]
  type = "http"               # tcp | http | https | grpc | udp | exec | none
  path = "/healthz"
  expect_status = "200-299"
  interval = "5s"
  timeout = "1s"
  healthy = 2                 # consecutive
  unhealthy = 3

  [[service.pool]]
  name = "v41"                # the first pool is the stable one at first start
  [[service.pool.backend]]
  address = "10.0.1.11:8443"
  weight = 100                # 0..65535; 0 takes no new flows

  [[service.pool]]
  name = "v42"
  [[service.pool.backend]]
  address = "10.0.2.11:8443"
"#;

#[test]
fn the_documented_example_means_what_it_says() {
    let Loaded { config, warnings } = config::parse(EXAMPLE, "lb.toml").unwrap();
    assert!(warnings.is_empty(), "{warnings}");

    let dataplane = &config.dataplane;
    assert_eq!(dataplane.interfaces[0].as_str(), "eth0");
    assert_eq!(
        (dataplane.xdp_mode, dataplane.flows, dataplane.half_open),
        (XdpMode::Auto, 1_048_576, 131_072)
    );
    assert_eq!(dataplane.hash_seed.unwrap().0[..3], [0x00, 0x11, 0x22]);
    assert_eq!((dataplane.udp_flows, dataplane.slots), (262_144, 4_194_304));
    assert_eq!((dataplane.backends, dataplane.services), (16_384, 4_096));
    assert_eq!(dataplane.tunnel_source_v4.to_string(), "172.16.0.0/16");
    assert_eq!(dataplane.tunnel_source_v6.to_string(), "100::/64");
    assert_eq!(dataplane.drain, Duration::from_secs(900));
    assert_eq!(dataplane.udp_idle, Duration::from_secs(30));
    assert_eq!(dataplane.sweep, Duration::from_secs(2));

    let [service] = config.services.as_slice() else { panic!("{config:?}") };
    assert_eq!(
        (service.name.as_str(), service.vip.to_string().as_str(), service.port),
        ("checkout", "203.0.113.10", 443)
    );
    assert_eq!((service.protocol, service.mode), (Protocol::Tcp, Mode::Nat));
    assert_eq!((service.split_key, service.backend_key), (SplitKey::SourceIp, BackendKey::FiveTuple));
    assert_eq!((service.tracking, service.table_size.get()), (Tracking::Flow, 16_381));
    assert_eq!((service.on_down, service.on_empty), (OnDown::Keep, OnEmpty::Reset));
    assert_eq!((service.panic_threshold.get(), service.slots()), (50, 2 * 16_381));

    let Some(HealthCheck { question: Question::Http(request), probe }) = &service.health.check else {
        panic!("{:?}", service.health)
    };
    assert_eq!((probe.interval, probe.timeout), (Duration::from_secs(5), Duration::from_secs(1)));
    assert_eq!((probe.healthy, probe.unhealthy, probe.port), (2, 3, None));
    assert_eq!((request.path.as_str(), &request.host), ("/healthz", &None));
    assert!(request.expect_status.contains(204) && !request.expect_status.contains(302));

    let [stable, canary] = service.pools.as_slice() else { panic!("{service:?}") };
    assert_eq!((stable.name.as_str(), canary.name.as_str()), ("v41", "v42"));
    assert_eq!(stable.backends[0].address, "10.0.1.11:8443".parse().unwrap());
    assert_eq!((stable.backends[0].weight.get(), canary.backends[0].weight.get()), (100, 100));
}

#[test]
fn a_backend_without_a_port_has_the_services() {
    let config = good(&EXAMPLE.replace("\"10.0.1.11:8443\"", "\"10.0.1.11\""));
    assert_eq!(config.services[0].pools[0].backends[0].address, "10.0.1.11:443".parse().unwrap());
}

#[test]
fn what_can_be_told_apart_may_share() {
    let service = |name: &str, vip: &str, port: u16, mode: &str, backend: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = {port}\nmode = \"{mode}\"\n\
             health.type = \"none\"\npool = [{{ name = \"v1\", backend = [{{ address = \"{backend}\" }}] }}]\n"
        )
    };
    let services = [
        // One VIP, its ports to one host: the longest match wins, and no port is changed.
        service("all", "203.0.113.10", 0, "nat", "10.0.1.11"),
        service("web", "203.0.113.10", 80, "nat", "10.0.1.11"),
        // Other addresses or ports of the same hosts.
        service("a", "203.0.113.11", 443, "nat", "10.0.1.12:8443"),
        service("b", "203.0.113.12", 443, "nat", "10.0.1.12:9443"),
        // Direct return does not need to tell replies apart, and mixes the families.
        service("direct", "203.0.113.13", 443, "dsr-l2", "10.0.1.12"),
        service("tunnel", "203.0.113.14", 443, "dsr-ipip", "10.0.1.12"),
        service("mixed", "2001:db8::10", 443, "dsr-l2", "10.0.1.12"),
    ];
    let text = format!("schema = 1\ndataplane.interfaces = [\"eth0\"]\n{}", services.concat());
    let Loaded { config, warnings } =
        config::parse(&text, "lb.toml").unwrap_or_else(|found| panic!("{found}"));
    assert!(warnings.is_empty(), "{warnings}");
    assert_eq!(config.services[0].pools[0].backends[0].address, "10.0.1.11:0".parse().unwrap());
}

#[test]
fn the_shipped_example_has_no_mistake_and_every_key() {
    let Loaded { config, warnings } =
        config::load(deployed("lb.toml")).unwrap_or_else(|error| panic!("{error}"));
    assert!(warnings.is_empty(), "{warnings}");
    assert_eq!(config.services.len(), 2);

    let text = fs::read_to_string(deployed("lb.toml")).unwrap();
    for key in keys(&json_schema()) {
        assert!(text.contains(&key), "the example does not show `{key}`");
    }
}

/// The file within the manifest of Kubernetes.
fn in_config_map(manifest: &str) -> String {
    let lines = manifest.lines().skip_while(|line| line.trim() != "lb.toml: |").skip(1);
    let lines = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
    lines.map(|line| line.get(4..).unwrap_or_default().to_owned() + "\n").collect()
}

#[test]
fn the_samples_have_no_mistake_and_are_what_they_say() {
    let Loaded { config, warnings } =
        config::load(deployed("examples/blue-green.toml")).unwrap_or_else(|error| panic!("{error}"));
    assert!(warnings.is_empty(), "{warnings}");
    let plan = config.services[0].rollout.as_ref().expect("a rollout").plan(None, None);
    assert!(plan.steps.len() == 1 && plan.steps[0].weight == 0.0 && plan.steps[0].gate.is_some(), "{plan:?}");
    assert!(plan.preview.is_some() && plan.analysis.max_failure_ratio.is_some(), "{plan:?}");

    let manifest = fs::read_to_string(deployed("kubernetes/lb.yaml")).unwrap();
    let Loaded { config, warnings } = config::parse(&in_config_map(&manifest), "lb.toml").unwrap();
    assert!(warnings.is_empty(), "{warnings}");
    let pools = &config.services[0].pools;
    assert!(pools.len() == 2 && pools.iter().all(|pool| pool.discovery.is_some()), "{pools:?}");
    // As the unit and the container files have it.
    let unit = fs::read_to_string(deployed("lbd.service")).unwrap();
    let capabilities = unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities=")).unwrap();
    let added = capabilities.replace("CAP_", "").replace(' ', ", ");
    assert!(manifest.contains(&format!("capabilities: {{ drop: [ALL], add: [{added}] }}")), "{added}");
}

fn keys(schema: &serde_json::Value) -> Vec<String> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let mut keys: Vec<String> =
        properties.flat_map(|(key, value)| std::iter::once(key.clone()).chain(keys(value))).collect();
    if let Some(items) = schema.get("items") {
        keys.extend(self::keys(items));
    }
    keys
}

#[test]
fn the_shipped_schema_is_current() {
    let (path, schema) = (deployed("lb.schema.json"), json_schema());
    let shipped = fs::read_to_string(&path).unwrap_or_default();
    // The order of keys is not compared: it depends on features that other crates ask of serde_json.
    if serde_json::from_str::<serde_json::Value>(&shipped).ok().as_ref() != Some(&schema) {
        expect(&path, &(serde_json::to_string_pretty(&schema).unwrap() + "\n")).unwrap();
    }
}

#[test]
fn the_schema_accepts_what_the_reader_accepts() {
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.enable_format_assertions();
    compiler.add_resource("lb.schema.json", json_schema()).unwrap();
    let schema = compiler.compile("lb.schema.json", &mut schemas).unwrap();

    let shipped = fs::read_to_string(deployed("lb.toml")).unwrap();
    for text in [shipped.as_str(), EXAMPLE] {
        let written: serde_json::Value = toml::from_str(text).unwrap();
        let canonical = serde_json::to_value(good(text)).unwrap();
        for value in [written, canonical] {
            schemas.validate(&value, schema).unwrap_or_else(|error| panic!("{error:#}"));
        }
    }
    for (path, text) in fixtures() {
        let (Ok(_), Ok(value)) = (config::parse(&text, &path), toml::from_str::<serde_json::Value>(&text))
        else {
            continue;
        };
        schemas.validate(&value, schema).unwrap_or_else(|error| panic!("{path}: {error:#}"));
    }
    let mistyped: serde_json::Value = toml::from_str(&EXAMPLE.replace("weight", "wieght")).unwrap();
    assert!(schemas.validate(&mistyped, schema).is_err());
}

#[test]
fn json_goes_through_the_same_rules() {
    let config = good(EXAMPLE);
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(serde_json::from_value::<Config>(json.clone()).unwrap(), config);
    let service = json["service"][0].clone();
    assert_eq!(serde_json::from_value::<Service>(service.clone()).unwrap(), config.services[0]);

    let refused =
        |service: serde_json::Value| serde_json::from_value::<Service>(service).unwrap_err().to_string();
    let mut unknown = service.clone();
    unknown["pool"][0]["wieght"] = 1.into();
    assert_eq!(
        refused(unknown),
        "LB0101: there is no key `wieght`; pool[0].wieght: not a key of `[[service.pool]]`; \
         its keys are name, min_healthy, min_healthy_recover, discovery, backend"
    );
    let mut mode = service;
    mode["mode"] = "dsr-l2".into();
    assert!(
        refused(mode)
            .starts_with("LB0305: mode `dsr-l2` cannot change the port; pool[0].backend[0].address: ")
    );
}

#[test]
fn a_hash_stands_for_the_content_and_not_for_its_spelling() {
    let hash = |text: &str| good(text).services[0].hash().to_string();
    let base = hash(EXAMPLE);
    assert_eq!(base, hash(&EXAMPLE.replace("interval = \"5s\"", "interval = \"5000ms\"")));
    assert_eq!(base, hash(&EXAMPLE.replace("on_down = \"keep\"", "")));
    assert_ne!(base, hash(&EXAMPLE.replace("weight = 100", "weight = 99")));
    // The journal keeps hashes: a change here makes every revision look changed.
    assert_eq!(base, "89e30df066cd3780629f1b531e9cbca0316ab0f1ac1877883bdb99fdad8e4f7c");
}

#[test]
fn a_large_file_is_read_in_good_time() {
    let mut text = String::from("schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n");
    for service in 0..1_000 {
        let (high, low) = (service / 250, service % 250 + 1);
        text.push_str(&format!(
            "[[service]]\nname = \"s{service}\"\nvip = \"192.0.{high}.{low}\"\nport = 80\ntable_size = 1021\n"
        ));
        text.push_str("[service.health]\ntype = \"tcp\"\n[[service.pool]]\nname = \"v1\"\n");
        for backend in 1..=10 {
            text.push_str(&format!("[[service.pool.backend]]\naddress = \"10.{high}.{low}.{backend}:80\"\n"));
        }
    }
    let started = Instant::now();
    let config = good(&text);
    let read = started.elapsed();
    assert_eq!(config.services.iter().map(|service| service.pools[0].backends.len()).sum::<usize>(), 10_000);
    assert!(read < Duration::from_secs(5), "{read:?}");

    let wrong = text.replace("address", "adress");
    let started = Instant::now();
    let found = config::parse(&wrong, "lb.toml").unwrap_err();
    assert_eq!(found.iter().filter(|found| found.code == Code::UnknownKey).count(), 10_000);
    assert!(found.render(Style::Plain).ends_with("mistakes\n"));
    let shown = started.elapsed();
    assert!(shown < Duration::from_secs(30), "{shown:?}");
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn word<T: Copy + std::fmt::Debug + 'static>(words: &'static [T]) -> impl Strategy<Value = T> {
        proptest::sample::select(words)
    }

    prop_compose! {
        fn health()(
            kind in word(config::Check::ALL), timeout in 10..5_000u32, slack in 0..5_000u32, fast_slack in 0..5_000u32,
            healthy in 1..10u32, port in 1..=u16::MAX, more in any::<bool>(), agent in any::<bool>(),
            status in word(&["200", "200-299", "200-204, 301"]), verify in word(config::Verify::ALL),
            bytes in prop::collection::vec(any::<u8>(), 1..20),
        ) -> serde_json::Value {
            use config::Check;

            let payload: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            let mut health = serde_json::json!({ "type": kind });
            let mut set = |key: &str, value: serde_json::Value| health[key] = value;
            if kind != Check::None {
                let fast = (timeout + fast_slack).max(100);
                set("timeout", format!("{timeout}ms").into());
                set("interval", format!("{}ms", fast + slack).into());
                set("healthy", healthy.into());
                if more {
                    set("fast_interval", format!("{fast}ms").into());
                    set("down_interval", format!("{}ms", fast + 2 * slack).into());
                }
            }
            // Whether it is needed depends on the service's.
            if !matches!(kind, Check::None | Check::Exec) {
                set("port", port.into());
            }
            if kind.is_http() {
                set("path", "/healthz?deep=1".into());
                set("expect_status", status.into());
            }
            if kind.is_http() && more {
                set("expect_body", "\"ok\": true \\ ü".into());
            }
            if (kind.is_http() || kind.is_grpc()) && more {
                set("host", "shop.example".into());
            }
            if kind.is_grpc() && more {
                set("grpc_service", "shop.v1.Shop".into());
            }
            if kind.is_tls() {
                set("verify", verify.as_str().into());
                set("sni", "shop.example".into());
            }
            if kind.is_tls() && verify == config::Verify::Required && more {
                set("ca_file", "/etc/lb/ca.pem".into());
            }
            if kind == Check::Udp {
                set("send", payload.clone().into());
                set("expect", payload.into());
            }
            if kind == Check::Exec {
                set("command", serde_json::json!(["/usr/bin/check", "a b", ""]));
            }
            if agent {
                set("agent_port", port.into());
                set("agent_interval", "1s 500ms".into());
                set("on_down_command", serde_json::json!(["/usr/bin/page"]));
            }
            health
        }
    }

    prop_compose! {
        fn service()(
            protocol in word(Protocol::ALL), mode in word(Mode::ALL), split in word(SplitKey::ALL), key in word(BackendKey::ALL),
            tracking in word(Tracking::ALL), down in word(OnDown::ALL), empty in word(OnEmpty::ALL),
            size in word(&[1021u32, 16_381, 65_537]), panic in 0..=100u8, every_port in any::<bool>(), v6 in any::<bool>(),
            health in health(), pools in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..5), 1..4),
        ) -> serde_json::Value {
            let mut service = serde_json::json!({
                "protocol": protocol, "mode": mode, "split_key": split, "backend_key": key, "on_down": down, "on_empty": empty,
                "table_size": size, "panic_threshold": panic, "port": if every_port { 0 } else { 443 }, "health": health,
            });
            service["vip"] = if v6 { "2001:db8::" } else { "203.0.113." }.into();
            if protocol == Protocol::Udp {
                service["tracking"] = tracking.as_str().into();
            }
            let pool = |(n, weights): (usize, Vec<u16>)| {
                let backend = |(m, weight): (usize, u16)| serde_json::json!({
                    "address": if v6 { format!("2001:db8:f:{n}::{m}") } else { format!("10.0.{n}.{m}") },
                    "weight": weight,
                    "state": config::AdminState::ALL[usize::from(weight) % 3],
                    "agent_port": weight.max(1),
                });
                let backends: Vec<_> = weights.into_iter().enumerate().map(backend).collect();
                serde_json::json!({ "name": format!("v{n}"), "backend": backends })
            };
            service["pool"] = pools.into_iter().enumerate().map(pool).collect();
            service
        }
    }

    prop_compose! {
        /// Configurations without a mistake, in the form of their file.
        fn configuration()(
            mut services in prop::collection::vec(service(), 0..4), xdp_mode in word(XdpMode::ALL),
            seed in prop::option::of("[0-9a-f]{32}"), drain in 100..100_000_000u32, flows in 1..1_000_000u32,
        ) -> serde_json::Value {
            for (n, service) in services.iter_mut().enumerate() {
                service["name"] = format!("s{n}").into();
                service["vip"] = format!("{}{}", service["vip"].as_str().unwrap(), n + 1).into();
                for backend in service["pool"].as_array_mut().unwrap().iter_mut().flat_map(|pool| pool["backend"].as_array_mut().unwrap()) {
                    // No backend of one service is also one of another.
                    let address = backend["address"].as_str().unwrap();
                    let address = match address.strip_prefix("10.0.") {
                        Some(rest) => format!("10.{n}.{rest}"),
                        None => address.replace(":f:", &format!(":f{n}:")),
                    };
                    backend["address"] = address.into();
                }
            }
            let mut config = serde_json::json!({
                "schema": 1,
                "dataplane": { "interfaces": ["eth0", "eth1.7"], "xdp_mode": xdp_mode, "drain": format!("{drain}ms"), "flows": flows },
                "service": services,
            });
            if let Some(seed) = seed {
                config["dataplane"]["hash_seed"] = seed.into();
            }
            config
        }
    }

    proptest! {
        #[test]
        fn a_configuration_survives_toml_and_json(written in configuration()) {
            let config = good(&toml::to_string(&written).unwrap());

            let text = config.to_toml().unwrap();
            let again = good(&text);
            prop_assert_eq!(&again, &config);
            prop_assert_eq!(again.to_toml().unwrap(), text);

            let json = serde_json::to_string(&config).unwrap();
            let again: Config = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&again, &config);
            prop_assert_eq!(serde_json::to_string(&again).unwrap(), json);
        }

        #[test]
        fn any_text_gives_a_configuration_or_mistakes_that_can_be_shown(text in any::<String>()) {
            shown(&text);
        }

        #[test]
        fn any_text_of_tomls_letters_gives_the_same(text in "[a-z0-9 =\"'\\[\\]{}.,#\n\r\té\u{feff}-]{0,200}") {
            shown(&text);
        }

        #[test]
        fn a_file_with_a_stretch_overwritten_gives_the_same(
            fixture in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), length in 0..20usize, with in "[a-z0-9=\"\\[\\]{}.,\n é-]{0,10}",
        ) {
            let fixtures = fixtures();
            let text = &fixtures[fixture.index(fixtures.len())].1;
            let start = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            shown(&format!("{}{with}{}", &text[..start], &text[end..]));
        }
    }

    fn shown(text: &str) {
        match config::parse(text, "lb.toml") {
            Ok(loaded) => assert!(loaded.warnings.iter().all(|found| found.severity() == Severity::Warning)),
            Err(found) => {
                assert!(found.errors() > 0);
                assert!(found.render(Style::Coloured).contains(found[0].code.as_str()));
                assert_eq!(found.reports().len(), found.len());
                assert!(found.reports().iter().all(|report| report.at.line > 0 && report.at.column > 0));
            }
        }
    }
}
