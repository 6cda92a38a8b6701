//! A sequence of bytes in guest memory, made of the pieces of a descriptor chain.
//!
//! The pieces were checked against guest memory by `vm-memory`; what they contain may change at any time, so it is
//! copied before it is looked at. Where the pieces end has no meaning (virtio 1.2 §2.7.4).

use std::collections::VecDeque;
use vm_memory::{Bytes, VolatileSlice};

/// A sequence of bytes in guest memory.
#[derive(Debug, Clone, Default)]
pub struct Buffers<'m> {
    slices: VecDeque<VolatileSlice<'m>>,
    len_bytes: usize,
}

impl<'m> Buffers<'m> {
    /// Appends a piece.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.len_bytes = self.len_bytes.saturating_add(slice.len());
            self.slices.push_back(slice);
        }
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len_bytes
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// The pieces, in order.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = &VolatileSlice<'m>> {
        self.slices.iter()
    }

    /// Cuts off the first `count` bytes; nothing happens when there are fewer.
    pub fn split_front(&mut self, count: usize) -> Option<Self> {
        if count > self.len_bytes {
            return None;
        }
        let mut front = Self::default();
        while front.len_bytes < count {
            let slice = self.slices.pop_front()?;
            let here = slice.len().min(count.saturating_sub(front.len_bytes));
            let (taken, left) = slice.split_at(here).ok()?;
            self.len_bytes = self.len_bytes.saturating_sub(here);
            front.push(taken);
            if !left.is_empty() {
                self.slices.push_front(left);
            }
        }
        Some(front)
    }

    /// Drops the first `count` bytes, without making anything of them; nothing happens when there are fewer.
    pub(super) fn drop_front(&mut self, count: usize) -> Option<()> {
        if count > self.len_bytes {
            return None;
        }
        let mut left = count;
        while left > 0 {
            let slice = self.slices.pop_front()?;
            let here = slice.len().min(left);
            if here < slice.len() {
                self.slices.push_front(slice.offset(here).ok()?);
            }
            self.len_bytes = self.len_bytes.saturating_sub(here);
            left = left.saturating_sub(here);
        }
        Some(())
    }

    /// Cuts off the last byte.
    pub(super) fn split_last_byte(&mut self) -> Option<VolatileSlice<'m>> {
        let slice = self.slices.pop_back()?;
        let (rest, last) = slice.split_at(slice.len().checked_sub(1)?).ok()?;
        self.len_bytes = self.len_bytes.saturating_sub(1);
        if !rest.is_empty() {
            self.slices.push_back(rest);
        }
        Some(last)
    }

    /// Copies as many bytes as there are, up to the length of `into`, and gives their number.
    pub fn copy_to(&self, into: &mut [u8]) -> usize {
        let mut done = 0usize;
        for slice in &self.slices {
            let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
            done = done.saturating_add(slice.copy_to(rest));
        }
        done
    }

    /// Overwrites as many bytes as there are, up to the length of `from`, and gives their number.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let mut done = 0usize;
        for slice in &self.slices {
            let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) else { break };
            done = done.saturating_add(slice.write(rest, 0).unwrap_or(0));
        }
        done
    }

    /// Overwrites everything with zeros.
    pub(super) fn fill_zero(&self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for slice in &self.slices {
            let mut rest = *slice;
            while let Ok(done) = rest.write(&ZEROS, 0) {
                match rest.offset(done) {
                    Ok(next) if done > 0 && !next.is_empty() => rest = next,
                    _ => break,
                }
            }
        }
    }
}

impl<'m> From<&'m mut [u8]> for Buffers<'m> {
    /// The process's own memory as one piece.
    fn from(bytes: &'m mut [u8]) -> Self {
        let mut buffers = Self::default();
        buffers.push(VolatileSlice::from(bytes));
        buffers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two<'m>(a: &'m mut [u8], b: &'m mut [u8]) -> Buffers<'m> {
        let mut buffers = Buffers::from(a);
        buffers.push(VolatileSlice::from(b));
        buffers
    }

    fn content(buffers: &Buffers<'_>) -> Vec<u8> {
        let mut bytes = vec![0; buffers.len()];
        assert_eq!(buffers.copy_to(&mut bytes), bytes.len());
        bytes
    }

    #[test]
    fn front_is_cut_across_pieces() {
        let (mut a, mut b) = (*b"abc", *b"defg");
        let mut buffers = two(&mut a, &mut b);
        assert_eq!(content(&buffers.split_front(5).unwrap()), b"abcde");
        assert_eq!(content(&buffers), b"fg");
    }

    #[test]
    fn front_is_dropped_across_pieces() {
        let (mut a, mut b) = (*b"abc", *b"defg");
        let mut buffers = two(&mut a, &mut b);
        assert_eq!((buffers.drop_front(8), content(&buffers).as_slice()), (None, &b"abcdefg"[..]));
        assert_eq!((buffers.drop_front(3), content(&buffers).as_slice()), (Some(()), &b"defg"[..]));
        assert_eq!((buffers.drop_front(1), buffers.drop_front(0)), (Some(()), Some(())));
        assert_eq!((content(&buffers).as_slice(), buffers.len()), (&b"efg"[..], 3));
    }

    #[test]
    fn front_longer_than_everything_is_refused_and_changes_nothing() {
        let (mut a, mut b) = (*b"abc", *b"defg");
        let mut buffers = two(&mut a, &mut b);
        assert!(buffers.split_front(8).is_none());
        assert_eq!(content(&buffers), b"abcdefg");
    }

    #[test]
    fn last_byte_is_cut_off_even_alone_in_its_piece() {
        let (mut a, mut b) = (*b"abc", *b"d");
        let mut buffers = two(&mut a, &mut b);
        assert_eq!(buffers.split_last_byte().unwrap().len(), 1);
        assert_eq!(content(&buffers), b"abc");
        assert_eq!(buffers.split_last_byte().unwrap().read_obj::<u8>(0).unwrap(), b'c');
        assert_eq!(buffers.len(), 2);
        assert!(Buffers::default().split_last_byte().is_none());
    }

    #[test]
    fn bytes_are_overwritten_across_pieces() {
        let (mut a, mut b) = (*b"abc", *b"defg");
        let buffers = two(&mut a, &mut b);
        assert_eq!(buffers.copy_from(b"12345"), 5);
        assert_eq!(content(&buffers), b"12345fg");
    }

    #[test]
    fn zeros_fill_pieces_of_any_size() {
        let (mut a, mut b) = (vec![1; 10_000], vec![1; 4096]);
        let buffers = two(&mut a, &mut b);
        buffers.fill_zero();
        assert_eq!(content(&buffers), vec![0; 14_096]);
    }
}
