//! Guests as machine code, for long mode with all memory mapped one to one, loaded at 1 MiB.

/// Where guests are loaded.
pub(crate) const START: u64 = 0x10_0000;
/// Where their parts are put, from the start.
const HANDLER: usize = 0x200;
const DESCRIPTORS: usize = 0x400;
const AP_CODE: usize = 0x300;
/// Local APIC registers: spurious interrupt vector, interrupt command (lower, upper half).
const SPURIOUS: u32 = 0xfee0_00f0;
const COMMAND: u32 = 0xfee0_0300;
const COMMAND_HIGH: u32 = 0xfee0_0310;
/// I/O APIC registers: index, data.
const SELECT: u32 = 0xfec0_0000;
const WINDOW: u32 = 0xfec0_0010;
const VECTOR: usize = 0x40;

/// mov ebx, address; mov dword [rbx], value
pub(crate) fn store(code: &mut Vec<u8>, address: u32, value: u32) {
    code.push(0xbb);
    code.extend(address.to_le_bytes());
    code.extend([0xc7, 0x03]);
    code.extend(value.to_le_bytes());
}

/// mov dx, port; mov al, value; out dx, al (in 64-bit and 32-bit code)
fn out(code: &mut Vec<u8>, port: u16, value: u8) {
    code.extend([0x66, 0xba]);
    code.extend(port.to_le_bytes());
    code.extend([0xb0, value, 0xee]);
}

/// The same in 16-bit code.
fn out16(code: &mut Vec<u8>, port: u16, value: u8) {
    code.push(0xba);
    code.extend(port.to_le_bytes());
    code.extend([0xb0, value, 0xee]);
}

fn put(code: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    assert!(code.len() <= at);
    code.resize(at, 0x90);
    code.extend(bytes);
}

/// Routes serial's interrupt to a handler, prints '.', waits, prints 'I' in the handler and powers off.
pub(crate) fn wait_for_serial_interrupt() -> Vec<u8> {
    let descriptors = START + DESCRIPTORS as u64;
    let mut code = Vec::new();
    // lidt [descriptors]
    code.extend([0x0f, 0x01, 0x1c, 0x25]);
    code.extend((descriptors as u32).to_le_bytes());
    store(&mut code, SPURIOUS, 0x1ff);
    store(&mut code, SELECT, 0x19);
    store(&mut code, WINDOW, 0);
    store(&mut code, SELECT, 0x18);
    store(&mut code, WINDOW, VECTOR as u32);
    out(&mut code, 0x3f8, b'.');
    // sti; hlt; jmp to hlt
    code.extend([0xfb, 0xf4, 0xeb, 0xfd]);
    let mut handler = Vec::new();
    out(&mut handler, 0x3f8, b'I');
    out(&mut handler, 0x600, 0x34);
    put(&mut code, HANDLER, &handler);
    // The interrupt descriptor table register: limit, base; the table follows at the next 16 bytes.
    let table = descriptors + 16;
    let mut register = (16 * (VECTOR as u16 + 1) - 1).to_le_bytes().to_vec();
    register.extend(table.to_le_bytes());
    put(&mut code, DESCRIPTORS, &register);
    // An interrupt gate: offset, selector 8, present 64-bit interrupt gate.
    let target = START + HANDLER as u64;
    let gate = (target & 0xffff) | (8 << 16) | (0x8e00 << 32) | ((target >> 16 & 0xffff) << 48);
    put(&mut code, DESCRIPTORS + 16 + 16 * VECTOR, &gate.to_le_bytes());
    code.extend((target >> 32).to_le_bytes());
    code
}

/// The first vCPU starts the second, which prints '2' and powers off.
pub(crate) fn start_second_vcpu() -> Vec<u8> {
    let mut ap = Vec::new();
    out16(&mut ap, 0x3f8, b'2');
    out16(&mut ap, 0x600, 0x34);
    // jmp $
    start_with(&ap, &[0xeb, 0xfe])
}

/// The first vCPU starts the second, which prints '2' and spins, and halts.
pub(crate) fn start_spinning_second_vcpu_and_halt() -> Vec<u8> {
    let mut ap = Vec::new();
    out16(&mut ap, 0x3f8, b'2');
    ap.extend([0xeb, 0xfe]);
    // cli; hlt
    start_with(&ap, &[0xfa, 0xf4])
}

/// Copies `ap` below 1 MiB, starts the second vCPU there and goes on with `then`.
fn start_with(ap: &[u8], then: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    // mov esi, ap; mov edi, 0x8000; mov ecx, bytes; rep movsb
    code.push(0xbe);
    code.extend((START as u32 + AP_CODE as u32).to_le_bytes());
    code.push(0xbf);
    code.extend(0x8000_u32.to_le_bytes());
    code.push(0xb9);
    code.extend((ap.len() as u32).to_le_bytes());
    code.extend([0xf3, 0xa4]);
    store(&mut code, SPURIOUS, 0x1ff);
    store(&mut code, COMMAND_HIGH, 1 << 24);
    // INIT, then the start-up vector 8: address 0x8000.
    store(&mut code, COMMAND, 0x4500);
    store(&mut code, COMMAND, 0x4608);
    code.extend(then);
    put(&mut code, AP_CODE, ap);
    code
}
