//! What the verifier does not see by itself: each thing once, with its reason.

use core::arch::asm;

/// A number that is at most `MASK`, as its caller knows, so that it does not change. The verifier of Linux 6.12 knows no
/// bounds of a number whose bytes were swapped, and that of 6.1 none of a product; LLVM would remove a plain mask.
#[inline(always)]
pub fn bounded<const MASK: u32>(mut value: usize) -> usize {
    // SAFETY: changes a register.
    unsafe {
        asm!("{value} &= {mask}", value = inout(reg) value, mask = const MASK, options(pure, nomem, nostack));
    }
    value
}
