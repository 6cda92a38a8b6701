//! Little-endian fields of a header that was copied from a boot file: absent where the copy ends too early.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use vm_memory::ByteValued;

/// The structure at the start of `bytes`, of a type with little-endian fields as the host has them.
#[must_use]
pub fn object<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut object = T::default();
    object.as_mut_slice().copy_from_slice(bytes.get(..size_of::<T>())?);
    Some(object)
}

/// The byte at `offset`.
#[must_use]
pub fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

/// The 16-bit field at `offset`.
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().copied().map(u16::from_le_bytes)
}

/// The 32-bit field at `offset`.
#[must_use]
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// The 64-bit field at `offset`.
#[must_use]
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().copied().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_that_does_not_fit_is_absent() {
        let bytes = [1, 2, 3, 4];
        assert_eq!(u16_at(&bytes, 2), Some(0x0403));
        assert_eq!(u16_at(&bytes, 3), None);
        assert_eq!(u32_at(&bytes, usize::MAX), None);
        assert_eq!(u64_at(&bytes, 0), None);
        assert_eq!(u8_at(&bytes, 4), None);
        assert_eq!(object::<u32>(&bytes), Some(0x0403_0201));
        assert_eq!(object::<u64>(&bytes), None);
    }
}
