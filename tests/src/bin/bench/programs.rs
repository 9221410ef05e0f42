//! How large the kernel programs are, and how large they may become.
//!
//! The test `budgets` has this file too.

use anyhow::{Context as _, Result};
use aya::EbpfLoader;
use aya::programs::Xdp;
use lb_userspace::dataplane::OBJECT;

/// How large a program may be.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Budget {
    /// Its name in the object.
    pub program: &'static str,
    /// Instructions that the verifier goes through, path by path. It gives up at a million.
    pub verified_instructions: u32,
    /// Bytes of instructions as the verifier leaves them (8 to 16 an instruction), dead code taken out.
    pub translated_bytes: u32,
    /// Bytes of machine code on x86-64: all of it should fit into 32 KiB of first-level cache, with room for the driver's.
    pub jited_bytes: u32,
}

/// The kernel that budgets were measured on.
pub const KERNEL: &str = "6.18.";

/// Whatever the kernel, and whatever it does, no program may take more instructions to verify.
pub const LIMIT: u32 = 100_000;

/// What was measured on [`KERNEL`] plus 5 %. (`lb` has its road twice: for the plainest shape of packets, and for all others.
/// `lb_reply` asks whether anything is awaited of a flow, so that most replies need no look-up; `lb_attend` and `lb_witness` count trials and
/// look at the limits of where a retry goes.) A change that needs more says what for.
pub const BUDGETS: &[Budget] = &[
    Budget { program: "lb", verified_instructions: 78_000, translated_bytes: 41_700, jited_bytes: 24_300 },
    Budget {
        program: "lb_reply",
        verified_instructions: 37_800,
        translated_bytes: 26_300,
        jited_bytes: 15_200,
    },
    Budget {
        program: "lb_attend",
        verified_instructions: 65_600,
        translated_bytes: 72_600,
        jited_bytes: 40_600,
    },
    Budget {
        program: "lb_session",
        verified_instructions: 33_600,
        translated_bytes: 21_700,
        jited_bytes: 13_000,
    },
    Budget {
        program: "lb_opening",
        verified_instructions: 31_300,
        translated_bytes: 21_300,
        jited_bytes: 12_800,
    },
    Budget {
        program: "lb_begin",
        verified_instructions: 76_400,
        translated_bytes: 19_700,
        jited_bytes: 11_500,
    },
    Budget {
        program: "lb_witness",
        verified_instructions: 25_500,
        translated_bytes: 46_000,
        jited_bytes: 25_400,
    },
    Budget {
        program: "lb_carry",
        verified_instructions: 49_900,
        translated_bytes: 21_400,
        jited_bytes: 12_800,
    },
    Budget {
        program: "lb_icmp",
        verified_instructions: 28_700,
        translated_bytes: 23_900,
        jited_bytes: 13_900,
    },
    Budget {
        program: "lb_fragment",
        verified_instructions: 42_900,
        translated_bytes: 27_000,
        jited_bytes: 15_800,
    },
    Budget {
        program: "lb_fragment_reply",
        verified_instructions: 56_800,
        translated_bytes: 13_700,
        jited_bytes: 8_120,
    },
    Budget {
        program: "lb_too_big",
        verified_instructions: 24_700,
        translated_bytes: 17_700,
        jited_bytes: 10_400,
    },
    // With AES in one block, and in up to four passes.
    Budget {
        program: "lb_quic",
        verified_instructions: 33_100,
        translated_bytes: 23_800,
        jited_bytes: 13_600,
    },
    Budget { program: "lb_decap", verified_instructions: 860, translated_bytes: 3_310, jited_bytes: 1_790 },
];

/// Loads each program as the agent does, and reads how large the kernel says it is.
///
/// # Errors
/// If the kernel refuses a program, or does not tell.
pub fn sizes() -> Result<Vec<Budget>> {
    let mut loader = EbpfLoader::new();
    loader.override_global("AYA_LOG_LEVEL", &0_u8, true);
    // Nothing depends on the room in these, and the kernel would fill them with memory.
    for map in ["FLOWS", "UDP_FLOWS", "HALF_OPEN", "OPENING", "SESSIONS", "SLOTS"] {
        loader.map_max_entries(map, 1024);
    }
    let mut object = loader.load(OBJECT).context("cannot load the object")?;
    BUDGETS.iter().map(|budget| size(&mut object, budget.program)).collect()
}

fn size(object: &mut aya::Ebpf, name: &'static str) -> Result<Budget> {
    let program: &mut Xdp =
        object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    program.load().with_context(|| format!("the kernel refuses {name}"))?;
    let info = program.info()?;
    Ok(Budget {
        program: name,
        verified_instructions: info.verified_instruction_count().context("this kernel does not count")?,
        translated_bytes: info.size_translated().context("this kernel does not tell the translated size")?,
        jited_bytes: info.size_jitted(),
    })
}
