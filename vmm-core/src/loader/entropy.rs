//! Random numbers for the guest, which has no other source of them when it starts. Read before the jail is shut.

use nix::errno::Errno;
use std::fmt;

/// Why there are no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the host gives no random numbers for the guest")]
pub struct EntropyError(#[source] Errno);

/// Random numbers, told to one guest and never shown.
#[derive(Clone)]
pub struct Entropy {
    /// Where the kernel puts itself (Devicetree specification, chosen: `kaslr-seed`).
    pub kaslr_seed: u64,
    /// The start of the kernel's random number generator (`rng-seed`).
    pub rng_seed: [u8; 64],
}

impl Entropy {
    /// Asks the host for random numbers.
    ///
    /// # Errors
    /// When it has none.
    pub fn gather() -> Result<Self, EntropyError> {
        let mut entropy = Self::default();
        let mut kaslr_seed = [0; 8];
        fill(&mut entropy.rng_seed).map_err(EntropyError)?;
        fill(&mut kaslr_seed).map_err(EntropyError)?;
        entropy.kaslr_seed = u64::from_ne_bytes(kaslr_seed);
        Ok(entropy)
    }
}

/// getrandom(2), which gives up to 256 bytes whole. The crate `getrandom` opens /dev/urandom in a static program, and
/// there is none in an empty root.
#[allow(unsafe_code, reason = "nix does not wrap getrandom")]
fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    // SAFETY: the pointer and the length are those of `bytes`, which is valid for writes.
    let length = unsafe { nix::libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(Errno::result(length)?) == Ok(bytes.len()) { Ok(()) } else { Err(Errno::EIO) }
}

impl Default for Entropy {
    /// No randomness at all: the guest's kernel takes a seed of 0 for none.
    fn default() -> Self {
        Self { kaslr_seed: 0, rng_seed: [0; 64] }
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Entropy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_from_guest_to_guest() {
        let (one, other) = (Entropy::gather().unwrap(), Entropy::gather().unwrap());
        assert_ne!((one.kaslr_seed, one.rng_seed), (other.kaslr_seed, other.rng_seed));
    }
}
