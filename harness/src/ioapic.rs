//! Any sequence of register accesses to the IOAPIC.

use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use vmm_core::arch::x86_64::ioapic::Ioapic;
use vmm_core::arch::x86_64::layout::IOAPIC_PINS;

/// The index register and the data window (82093AA data sheet §3.1).
const INDEX: u64 = 0;
const WINDOW: u64 = 0x10;

/// Accesses of any width at any offset: none panics, none routes a pin that there is not, and the redirection table
/// reads back as what it acts on.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    let mut ioapic = Ioapic::default();
    play(&mut ioapic, &mut Unstructured::new(bytes)).unwrap_or(());
    let routes = ioapic.routes();
    assert!(routes.len() <= IOAPIC_PINS as usize, "{} pins", routes.len());
}

fn play(ioapic: &mut Ioapic, input: &mut Unstructured<'_>) -> Result<()> {
    while !input.is_empty() {
        match input.int_in_range(0..=2_u8)? {
            0 => {
                let (index, value) = (input.arbitrary::<u8>()?, input.arbitrary::<u32>()?);
                write(ioapic, INDEX, &u32::from(index).to_le_bytes());
                write(ioapic, WINDOW, &value.to_le_bytes());
                let mut word = [0; 4];
                ioapic.read(WINDOW, &mut word);
                let again = u32::from_le_bytes(word);
                write(ioapic, WINDOW, &again.to_le_bytes());
                ioapic.read(WINDOW, &mut word);
                assert_eq!(u32::from_le_bytes(word), again, "register {index:#x} does not keep what it shows");
            }
            1 => {
                let offset = input.arbitrary::<u16>()?;
                let width = input.int_in_range(0..=16_usize)?;
                let data = input.bytes(width)?;
                write(ioapic, offset.into(), data);
            }
            _ => {
                let offset = input.arbitrary::<u16>()?;
                let width = input.int_in_range(0..=16_usize)?;
                ioapic.read(offset.into(), &mut vec![0; width]);
            }
        }
    }
    Ok(())
}

/// The routes change exactly when the device says so; the vmm tells KVM then, and only then.
fn write(ioapic: &mut Ioapic, offset: u64, data: &[u8]) {
    let before = ioapic.routes();
    let changed = ioapic.write(offset, data);
    assert!(changed || ioapic.routes() == before, "a change of the routes would not be told to KVM");
}

/// A route for the serial port.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("route", Seed::new().u8(0).u8(0x18).u32(0x31).u8(0).u8(0x19).u32(1 << 24).u8(2).u16(0x10).u8(4).done())]
}
