//! The I/O APIC (82093AA), in the vmm because the interrupt chip is split: it only holds the redirection table.
//!
//! Interrupts never come here. Each unmasked entry becomes an MSI route of KVM, by which the irqfd of a device reaches
//! the local APICs. All of our interrupts are edge-triggered; an entry that the guest sets to level is delivered as an
//! edge, so that it has no end of interrupt to wait for.
//!
//! The guest is distrusted: accesses of any width and place are answered.

use super::layout::IOAPIC_PINS;

/// The index register (82093AA §3.1.1).
const SELECT: u64 = 0x00;
/// The data register (82093AA §3.1.2).
const WINDOW: u64 = 0x10;
/// The identification register (82093AA §3.2.1).
const ID: u8 = 0x00;
/// The version register (82093AA §3.2.2).
const VERSION: u8 = 0x01;
/// The arbitration register (82093AA §3.2.3).
const ARBITRATION: u8 = 0x02;
/// The first redirection entry's lower half (82093AA §3.2.4).
const REDIRECTION: u8 = 0x10;
/// 82093AA, version 1.1; the upper half holds the number of the last pin.
const VERSION_VALUE: u32 = 0x11 | ((IOAPIC_PINS - 1) << 16);
/// The identification's writable bits.
const ID_MASK: u32 = 0x0f00_0000;
/// An entry's mask bit, set after reset.
const MASKED: u64 = 1 << 16;
/// An entry's bits that are read-only: delivery status and remote IRR.
const READ_ONLY: u64 = (1 << 12) | (1 << 14);
/// An entry's reserved bits, which read as zero.
const RESERVED: u64 = 0x00ff_ffff_fffe_0000;
/// The lowest vector that the local APIC accepts (Intel SDM volume 3 §12.5.2).
const FIRST_VECTOR: u64 = 16;

/// An interrupt message to the local APICs (Intel SDM volume 3 §12.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// The pin that sends it, which is its GSI.
    pub gsi: u32,
    /// Where it is written to.
    pub address: u32,
    /// What is written.
    pub data: u32,
}

/// The registers.
#[derive(Debug)]
pub struct Ioapic {
    select: u8,
    id: u32,
    entries: [u64; IOAPIC_PINS as usize],
}

impl Default for Ioapic {
    fn default() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; IOAPIC_PINS as usize] }
    }
}

impl Ioapic {
    /// The guest reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => u32::from(self.select),
            WINDOW => self.read_selected(),
            _ => u32::MAX,
        };
        data.fill(0xff);
        for (byte, of_value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = of_value;
        }
    }

    /// The guest writes `data` at `offset`. True when the routes have changed.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        match (offset, data) {
            (SELECT, [select, ..]) => {
                self.select = *select;
                false
            }
            (WINDOW, data) => <[u8; 4]>::try_from(data).is_ok_and(|word| self.write_selected(u32::from_le_bytes(word))),
            _ => false,
        }
    }

    /// The messages that the pins send now; masked pins send none.
    #[must_use]
    pub fn routes(&self) -> Vec<Msi> {
        (0..).zip(self.entries).filter_map(|(gsi, entry)| message(gsi, entry)).collect()
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            select => {
                let Some((pin, high)) = redirection(select) else { return u32::MAX };
                let entry = self.entries.get(pin).copied().unwrap_or(u64::MAX);
                let [a, b, c, d, e, f, g, h] = entry.to_le_bytes();
                u32::from_le_bytes(if high { [e, f, g, h] } else { [a, b, c, d] })
            }
        }
    }

    fn write_selected(&mut self, value: u32) -> bool {
        if self.select == ID {
            self.id = value & ID_MASK;
            return false;
        }
        let Some((pin, high)) = redirection(self.select) else { return false };
        let Some(entry) = self.entries.get_mut(pin) else { return false };
        let value = u64::from(value);
        let new = if high { (*entry & 0xffff_ffff) | (value << 32) } else { (*entry >> 32 << 32) | value };
        let before = message(0, *entry);
        *entry = new & !READ_ONLY & !RESERVED;
        before != message(0, *entry)
    }
}

/// The pin whose entry a register holds, and whether it is the upper half.
fn redirection(select: u8) -> Option<(usize, bool)> {
    let register = usize::from(select.checked_sub(REDIRECTION)?);
    Some((register / 2, register % 2 == 1))
}

/// What an entry sends: nothing if it is masked, has an impossible vector, or a delivery mode that is no plain interrupt.
fn message(gsi: u32, entry: u64) -> Option<Msi> {
    let [vector, mode, _, _, _, _, _, destination] = entry.to_le_bytes();
    let (delivery, logical) = (mode & 7, mode & 8 != 0);
    // Fixed and lowest priority (82093AA §3.2.4).
    if entry & MASKED != 0 || u64::from(vector) < FIRST_VECTOR || delivery > 1 {
        return None;
    }
    let redirection_hint = u32::from(delivery == 1) << 3;
    let address = 0xfee0_0000 | (u32::from(destination) << 12) | redirection_hint | (u32::from(logical) << 2);
    // Trigger mode 0: edge.
    let data = u32::from(vector) | (u32::from(delivery) << 8);
    Some(Msi { gsi, address, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ioapic: &mut Ioapic, register: u8, value: u32) -> bool {
        assert!(!ioapic.write(SELECT, &[register, 0, 0, 0]));
        ioapic.write(WINDOW, &value.to_le_bytes())
    }

    fn read(ioapic: &mut Ioapic, register: u8) -> u32 {
        assert!(!ioapic.write(SELECT, &[register]));
        let mut word = [0; 4];
        ioapic.read(WINDOW, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn reset_state_is_masked_and_has_24_pins() {
        let mut ioapic = Ioapic::default();
        assert_eq!(read(&mut ioapic, 1) >> 16, 23);
        assert!((0..24).all(|pin| read(&mut ioapic, 0x10 + 2 * pin) == 0x10000));
        assert_eq!(read(&mut ioapic, 0x10 + 48), u32::MAX, "there is no 25th pin");
        assert!(ioapic.routes().is_empty());
    }

    #[test]
    fn unmasked_entry_becomes_a_message() {
        let mut ioapic = Ioapic::default();
        assert!(!write(&mut ioapic, 0x19, 0x0300_0000), "the entry is masked");
        assert!(write(&mut ioapic, 0x18, 0x31));
        assert_eq!(ioapic.routes(), [Msi { gsi: 4, address: 0xfee0_3000, data: 0x31 }]);
        assert!(!write(&mut ioapic, 0x18, 0x31), "the same again changes nothing");
        assert!(write(&mut ioapic, 0x18, 0x31 | 0x10000));
        assert!(ioapic.routes().is_empty());
    }

    #[test]
    fn logical_lowest_priority_entry_keeps_both() {
        let mut ioapic = Ioapic::default();
        write(&mut ioapic, 0x1b, 0xff00_0000);
        assert!(write(&mut ioapic, 0x1a, 0x941));
        assert_eq!(ioapic.routes(), [Msi { gsi: 5, address: 0xfeef_f00c, data: 0x141 }]);
    }

    #[test]
    fn level_triggered_entry_is_delivered_as_an_edge() {
        let mut ioapic = Ioapic::default();
        assert!(write(&mut ioapic, 0x10, 0x8050));
        assert_eq!(read(&mut ioapic, 0x10), 0x8050);
        assert_eq!(ioapic.routes()[0].data, 0x50);
    }

    #[test]
    fn entry_that_is_no_plain_interrupt_sends_nothing() {
        let mut ioapic = Ioapic::default();
        // SMI, NMI, INIT, ExtINT, and a vector below 16.
        for entry in [0x250, 0x450, 0x550, 0x750, 0x0f] {
            assert!(!write(&mut ioapic, 0x10, entry));
        }
        assert!(ioapic.routes().is_empty());
    }

    #[test]
    fn read_only_bits_are_not_written() {
        let mut ioapic = Ioapic::default();
        write(&mut ioapic, 0x10, u32::MAX);
        assert_eq!(read(&mut ioapic, 0x10), 0x1_afff);
        write(&mut ioapic, 0x11, u32::MAX);
        assert_eq!(read(&mut ioapic, 0x11), 0xff00_0000);
    }

    #[test]
    fn access_of_any_width_and_place_is_answered() {
        let mut ioapic = Ioapic::default();
        for offset in (0..0x1000).chain([u64::MAX]) {
            for width in 0..=8 {
                ioapic.read(offset, &mut vec![0; width]);
                assert!(!ioapic.write(offset, &vec![0xff; width]));
            }
        }
    }
}
