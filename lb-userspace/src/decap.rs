//! The other end of `dsr-ipip` and `dsr-gue`, for backends whose kernel has no tunnel device: a small XDP program that takes the outer
//! header off, and its loader.

use std::time::Duration;

use anyhow::Context;
use aya::EbpfLoader;
use aya::maps::{Array, PerCpuArray};
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::abi::Port;
use lb_common::decap::{Allowed, Decapsulated};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::dataplane::{OBJECT, check_kernel, maps};

/// `lbd decap`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The interface that tunnelled packets come in by.
    #[arg(long)]
    interface: String,
    /// Prefixes of outer sources that are balancers, one of IPv4 and one of IPv6 at most. Packets from elsewhere are dropped:
    /// a tunnel is a way around the network's own filters.
    #[arg(long, default_values = ["172.16.0.0/16", "100::/64"])]
    allow: Vec<IpNet>,
    /// UDP port that tunnels of `dsr-gue` come to. What else comes there from an allowed source is dropped.
    #[arg(long, default_value_t = 6080)]
    gue_port: u16,
}

/// `bytemuck` makes bytes of it; aya wants to hear that it may.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value(Allowed);

// SAFETY: `Allowed` is bytes without padding.
unsafe impl aya::Pod for Value {}

/// Runs until it is told to stop; then packets are left alone again. What it has dropped it says once a minute, if that is more
/// than before.
///
/// # Errors
///
/// If the program cannot be loaded or attached.
pub async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    check_kernel()?;
    let allowed = Allowed { gue_port: Port::new(arguments.gue_port), ..allowed(&arguments.allow)? };
    let mut loader = EbpfLoader::new();
    loader.btf(None).override_global("AYA_LOG_LEVEL", &0u8, true);
    for name in maps::NAMES {
        // The balancer's own tables are in the same object; here they are as small as can be.
        loader.map_max_entries(name, if *name == "WANTED" { 4096 } else { 1 });
    }
    let mut object = loader.load(OBJECT).context("cannot load the object")?;
    let map = object.map_mut("DECAP").context("the object has no map DECAP")?;
    Array::<_, Value>::try_from(map)?.set(0, Value(allowed), 0)?;
    let program: &mut Xdp =
        object.program_mut("lb_decap").context("the object has no program lb_decap")?.try_into()?;
    program.load().context("cannot load the program: lbd needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")?;
    let mode = match program.attach(&arguments.interface, XdpMode::Driver) {
        Ok(_) => "native",
        Err(error) => {
            warn!(
                "no native XDP on {} ({error}): trying generic mode, which is several times slower",
                arguments.interface
            );
            program
                .attach(&arguments.interface, XdpMode::Skb)
                .with_context(|| format!("cannot attach to {}", arguments.interface))?;
            "generic"
        }
    };
    info!(interface = arguments.interface, mode, "takes outer headers off");
    let counters = object.map("DECAP_COUNTERS").context("the object has no map DECAP_COUNTERS")?;
    let counters = PerCpuArray::<_, Counts>::try_from(counters)?;
    let mut said = Counts::default();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut often = tokio::time::interval(Duration::from_secs(60));
    loop {
        let stops = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            _ = often.tick() => false,
        };
        let now = counters.get(&0, 0)?.iter().fold(Counts::default(), sum);
        if stops || dropped(&now) != dropped(&said) {
            let [_, decapsulated, refused, malformed, congested] = now;
            info!(decapsulated, refused, malformed, congested, "packets since the start");
            said = now;
        }
        if stops {
            return Ok(());
        }
    }
}

/// By [`Decapsulated`].
type Counts = [u64; Decapsulated::COUNT];

fn sum(one: Counts, other: &Counts) -> Counts {
    std::array::from_fn(|n| one[n] + other[n])
}

fn dropped(counts: &Counts) -> u64 {
    counts[Decapsulated::Refused as usize..].iter().sum()
}

fn allowed(prefixes: &[IpNet]) -> anyhow::Result<Allowed> {
    let (mut v4, mut v6): (Option<Ipv4Net>, Option<Ipv6Net>) = (None, None);
    for prefix in prefixes {
        let twice = match prefix {
            IpNet::V4(prefix) => v4.replace(*prefix).is_some(),
            IpNet::V6(prefix) => v6.replace(*prefix).is_some(),
        };
        anyhow::ensure!(
            !twice,
            "--allow takes one prefix of IPv4 and one of IPv6, and {prefix} is one too many"
        );
    }
    // A family without a prefix allows nothing: no outer source is all ones.
    let nothing4 = ([u8::MAX; 4], [u8::MAX; 4]);
    let nothing6 = ([u8::MAX; 16], [u8::MAX; 16]);
    let (v4, v4_mask) = v4.map_or(nothing4, |net| (net.network().octets(), net.netmask().octets()));
    let (v6, v6_mask) = v6.map_or(nothing6, |net| (net.network().octets(), net.netmask().octets()));
    Ok(Allowed { v4, v4_mask, v6, v6_mask, gue_port: Port::ANY, pad: 0 })
}
