//! Ctrl-A, the key that speaks to us and not to the guest: Ctrl-A x leaves, Ctrl-A Ctrl-A is one Ctrl-A.
//!
//! Distrusts nobody; terminal input is the user's, and any byte sequence is fine.

use std::collections::VecDeque;

const CTRL_A: u8 = 0x01;

/// The state between two reads of the terminal.
#[derive(Debug)]
pub(super) struct Escapes {
    enabled: bool,
    pending: bool,
}

impl Escapes {
    /// Looks for escapes if `enabled`; passes everything on otherwise.
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, pending: false }
    }

    /// Whether escapes are looked for, which needs all input to be read.
    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// Appends to `typed` what the guest shall get of `bytes`; true when the user leaves.
    pub(super) fn pass(&mut self, bytes: &[u8], typed: &mut VecDeque<u8>) -> bool {
        if !self.enabled {
            typed.extend(bytes);
            return false;
        }
        let mut leave = false;
        for &byte in bytes {
            match (std::mem::take(&mut self.pending), byte) {
                (false, CTRL_A) => self.pending = true,
                (false, byte) => typed.push_back(byte),
                (true, b'x') => leave = true,
                (true, CTRL_A) => typed.push_back(CTRL_A),
                (true, byte) => typed.extend([CTRL_A, byte]),
            }
        }
        leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(escapes: &mut Escapes, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut typed = VecDeque::new();
        let leave = escapes.pass(bytes, &mut typed);
        (typed.into(), leave)
    }

    #[test]
    fn ctrl_a_x_leaves_even_when_read_in_two_parts() {
        let mut escapes = Escapes::new(true);
        assert_eq!(pass(&mut escapes, b"ab\x01"), (b"ab".to_vec(), false));
        assert_eq!(pass(&mut escapes, b"xc"), (b"c".to_vec(), true));
    }

    #[test]
    fn doubled_ctrl_a_is_one_and_another_key_keeps_both() {
        let mut escapes = Escapes::new(true);
        assert_eq!(pass(&mut escapes, b"\x01\x01x\x01c"), (b"\x01x\x01c".to_vec(), false));
    }

    #[test]
    fn input_without_escapes_is_passed_as_it_is() {
        assert_eq!(pass(&mut Escapes::new(false), b"\x01x"), (b"\x01x".to_vec(), false));
    }
}
