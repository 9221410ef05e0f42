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

/// What was measured on [`KERNEL`] plus 5 %. (`lb` has its road twice: for the plainest shape of packets, and for all others. 1.7 KB of
/// what is translated are `lb_depart`, the end of each road: a global function is part of every program that calls it.) A change that
/// needs more says what for.
pub const BUDGETS: &[Budget] = &[
    Budget { program: "lb", verified_instructions: 73_000, translated_bytes: 38_600, jited_bytes: 22_900 },
    Budget {
        program: "lb_reply",
        verified_instructions: 48_200,
        translated_bytes: 33_700,
        jited_bytes: 19_600,
    },
    Budget {
        program: "lb_attend",
        verified_instructions: 77_800,
        translated_bytes: 84_700,
        jited_bytes: 47_500,
    },
    Budget {
        program: "lb_session",
        verified_instructions: 39_700,
        translated_bytes: 24_600,
        jited_bytes: 15_100,
    },
    Budget {
        program: "lb_opening",
        verified_instructions: 45_700,
        translated_bytes: 23_100,
        jited_bytes: 14_700,
    },
    Budget {
        program: "lb_begin",
        verified_instructions: 64_700,
        translated_bytes: 26_300,
        jited_bytes: 15_700,
    },
    Budget {
        program: "lb_witness",
        verified_instructions: 40_900,
        translated_bytes: 54_200,
        jited_bytes: 30_000,
    },
    Budget {
        program: "lb_carry",
        verified_instructions: 53_000,
        translated_bytes: 23_000,
        jited_bytes: 13_800,
    },
    Budget {
        program: "lb_icmp",
        verified_instructions: 40_400,
        translated_bytes: 29_400,
        jited_bytes: 17_700,
    },
    Budget {
        program: "lb_fragment",
        verified_instructions: 80_200,
        translated_bytes: 42_200,
        jited_bytes: 25_000,
    },
    Budget {
        program: "lb_fragment_reply",
        verified_instructions: 75_600,
        translated_bytes: 17_000,
        jited_bytes: 10_300,
    },
    Budget {
        program: "lb_too_big",
        verified_instructions: 30_300,
        translated_bytes: 22_500,
        jited_bytes: 13_500,
    },
    Budget {
        program: "lb_session_icmp",
        verified_instructions: 26_600,
        translated_bytes: 15_800,
        jited_bytes: 9_500,
    },
    Budget {
        program: "lb_session_fragment",
        verified_instructions: 73_300,
        translated_bytes: 32_700,
        jited_bytes: 19_000,
    },
    Budget {
        program: "lb_guard",
        verified_instructions: 8_300,
        translated_bytes: 20_200,
        jited_bytes: 11_800,
    },
    Budget { program: "lb_host", verified_instructions: 10_100, translated_bytes: 4_800, jited_bytes: 2_900 },
    Budget {
        program: "lb_quic",
        verified_instructions: 30_400,
        translated_bytes: 27_600,
        jited_bytes: 15_900,
    },
    Budget { program: "lb_decap", verified_instructions: 2_100, translated_bytes: 4_200, jited_bytes: 2_300 },
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
