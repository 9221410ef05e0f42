//! What an agent knows of the layouts before its own: for each the maps whose keys or values were something else.
//!
//! A map that is not listed is the same in both layouts, and both share it. One that is listed is made anew, and its entries are
//! copied, each turned into what it is now.

use lb_common::abi::LAYOUT;

/// The way from another layout to [`LAYOUT`].
pub(super) struct Step {
    /// The other layout.
    pub from: u32,
    /// The maps that were something else there, by name.
    pub changed: &'static [Changed],
}

/// A map that is not what it was.
pub(super) struct Changed {
    /// Its name.
    pub name: &'static str,
    /// Bytes of a key and of a value, as they were.
    pub was: [usize; 2],
    /// Bytes of a key and of a value, as they are.
    pub is: [usize; 2],
    /// An entry as it is now. `None`: there is nothing that it could be.
    pub convert: fn(key: &[u8], value: &[u8]) -> Option<Entry>,
    /// What is done with it once packets meet the new map.
    pub late: Late,
}

/// A key and its value.
pub(super) type Entry = (Vec<u8>, Vec<u8>);

/// Who writes a map, and what that means for an entry that was written after it had been copied for the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The agent only, which does not run; or the kernel program, and what it has counted in this moment does not matter.
    Nothing,
    #[cfg_attr(not(feature = "next-layout"), expect(dead_code, reason = "no such map has changed so far"))]
    /// The kernel program, too: what came or changed since is copied. (Of hash maps: an array's elements are never absent, and
    /// their new ones may have changed, too.)
    Entries,
    /// The kernel program, too, but all that counts of it is a split that was lowered: it is lowered.
    Split,
}

/// The ways that are known.
pub(super) const STEPS: &[Step] = &[
    #[cfg(feature = "next-layout")]
    v1::STEP,
];

/// The way from another layout, if it is known.
pub(super) fn step_from(layout: u32) -> Option<&'static Step> {
    STEPS.iter().find(|step| step.from == layout && layout < LAYOUT)
}

/// Layout 1, for the layout that tests make up: some of its values have zeros in the midst of them.
#[cfg(feature = "next-layout")]
mod v1 {
    use core::mem::offset_of;

    use lb_common::abi::{Backend, FlowEntry, FlowKey, Service};

    use super::{Changed, Late, Step};

    const AT: usize = offset_of!(Service, wider);

    pub const STEP: Step = Step {
        from: 1,
        changed: &[
            Changed {
                name: "SERVICES",
                was: [4, size_of::<Service>() - 16],
                is: [4, size_of::<Service>()],
                convert: |key, value| {
                    let (before, behind) = value.split_at_checked(AT)?;
                    Some((key.to_vec(), [before, &[0; 16], behind].concat()))
                },
                late: Late::Split,
            },
            Changed {
                name: "BACKENDS",
                was: [4, size_of::<Backend>() - 64],
                is: [4, size_of::<Backend>()],
                convert: |key, value| Some((key.to_vec(), [value, &[0; 64]].concat())),
                late: Late::Nothing,
            },
            flows("FLOWS"),
            flows("UDP_FLOWS"),
        ],
    };

    const fn flows(name: &'static str) -> Changed {
        Changed {
            name,
            was: [size_of::<FlowKey>(), size_of::<FlowEntry>() - 4],
            is: [size_of::<FlowKey>(), size_of::<FlowEntry>()],
            convert: |key, value| Some((key.to_vec(), [value, &[0; 4]].concat())),
            late: Late::Entries,
        }
    }
}
