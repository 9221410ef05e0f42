//! What kernel this is, and whether it has what the programs need.

use std::ffi::CStr;
use std::path::Path;

use super::LoadError;

/// The oldest kernel that the programs are made for.
pub(crate) const OLDEST: (u32, u32) = (6, 1);

/// Where a kernel shows its own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Whether the kernel is new enough.
///
/// # Errors
///
/// [`LoadError::Kernel`] names it.
pub fn check() -> Result<(), LoadError> {
    let found = release();
    match version(&found) {
        Some(version) if version >= OLDEST => Ok(()),
        _ => Err(LoadError::Kernel { found }),
    }
}

/// Whether the kernel shows its own types; without them the verifier takes no function but the first. (Where `/sys` is hidden
/// it does not, so that this explains a refusal, and is no reason for one.)
pub(crate) fn has_btf() -> bool {
    Path::new(BTF).exists()
}

/// As `uname -r` prints it.
fn release() -> String {
    // SAFETY: an all-zero structure of character arrays is valid, and is filled in.
    unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut name);
        CStr::from_ptr(name.release.as_ptr()).to_string_lossy().into_owned()
    }
}

/// The first two numbers of a release, whatever a distribution appends.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read() {
        for (release, expected) in [
            ("6.1.0-13-amd64", (6, 1)),
            ("6.18.44-fc-v595", (6, 18)),
            ("5.15.0-1051-aws", (5, 15)),
            ("5.14.0-427.el9.x86_64", (5, 14)),
            ("6.2-rc3", (6, 2)),
            ("6.10+", (6, 10)),
            ("10.0.1", (10, 0)),
        ] {
            assert_eq!(version(release), Some(expected), "{release}");
        }
        for nothing in ["", "6", "six.one", "v6.1", "6.", "99999999999.1"] {
            assert_eq!(version(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn an_old_kernel_is_named_with_what_is_needed() {
        assert!(version("5.19.17") < Some(OLDEST) && version("6.1") == Some(OLDEST));
        let error = LoadError::Kernel { found: "5.10.0-28-amd64".to_owned() }.to_string();
        assert!(
            error.contains("this kernel is 5.10.0-28-amd64") && error.contains("6.1 or newer"),
            "{error}"
        );
        assert!(check().is_ok(), "the tests run on a kernel that is new enough");
    }
}
