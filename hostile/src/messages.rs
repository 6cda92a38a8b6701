//! What a captured process tells others: malformed, oversized, out of turn, without end, about memory that is not there,
//! or nothing at all.

use crate::attempt::{Act, Attempt, Done, Expect};
use crate::held::{Held, Kind};
use crate::{Seat, arch, calls, raw};
use nix::errno::Errno;

const CONTROL: &str = "messages to the broker";
const PEER: &str = "messages to another process";
const GUEST_MEMORY: &str = "addresses outside of guest memory";
const SILENCE: &str = "no end, no answer";
const BROKE: &str = "it broke the protocol";
/// A `Ready` as `wire` encodes it: the variant, then ABI, whether MDWE, no listeners.
const READY: [u8; 7] = [0, 0, 0, 0, 7, 1, 0];
const VMM: &[Seat] = &[Seat::VmmControl, Seat::VmmVcpu];
const LOADER: &[Seat] = &[Seat::Loader];
const SERIAL: &[Seat] = &[Seat::Serial];
const BLOCK: &[Seat] = &[Seat::VirtioBlk];
const INSPECTOR: &[Seat] = &[Seat::Inspector];
/// The most descriptors that the kernel passes at once (linux/net/scm.h).
const SCM_MAX_FD: usize = 253;
/// No address of any guest's memory.
const NOWHERE: u64 = 0x7fff_ffff_f000;

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = control();
    all.extend(peers());
    all.extend(entries());
    all.extend(tables());
    all.extend(silence());
    all
}

fn control() -> Vec<Attempt> {
    let add = |name: &str, act: fn(&Held) -> Done, words| {
        Attempt::new(CONTROL, name, name, Act::Do(act)).expect(Expect::CutOff(words))
    };
    vec![
        add("bytes that are no message", |_| tell(&[0xff; 32], 0), BROKE),
        add("a message that is cut off", |_| tell(&[0, 0, 0, 0, 7], 0), BROKE),
        add("a message that is too long", |_| tell(&[0; 8193], 0), BROKE),
        add("a message with bytes behind it", |_| tell(&[&READY[..], &[9; 9]].concat(), 0), BROKE),
        add("a message with a descriptor", |_| tell(&READY, 1), BROKE),
        add("a message with 253 descriptors", |_| tell(&READY, SCM_MAX_FD), BROKE),
        add("a second Ready", |_| tell(&READY, 0), BROKE),
        add("a message of no bytes, as of one that is gone", |_| tell(&[], 0), "process"),
        add("an address of the host's with a message", to_listener, BROKE),
        add("messages that it may send, without end", flood, BROKE),
    ]
}

fn tell(bytes: &[u8], fds: usize) -> Done {
    done(send(0, bytes, &vec![0; fds], &[]))
}

/// A packet socket ignores the address and sends to its peer.
fn to_listener(_held: &Held) -> Done {
    done(send(0, &[0xff; 32], &[], &calls::listener()))
}

/// Each process has a message that it may send at any time, by its variant.
fn flood(held: &Held) -> Done {
    let text = [&1_u64.to_le_bytes()[..], b"x"].concat();
    let variant = |number: u32, fields: &[u8]| [&number.to_le_bytes()[..], fields].concat();
    if held.first(Kind::Vm).is_some() {
        // FromVmm::Running.
        endless(&variant(1, &[]))
    } else if held.first(Kind::Packets).is_some() {
        // FromSerial::Halted.
        endless(&variant(3, &[]))
    } else if held.first(Kind::Stream).is_some() {
        // FromBlock::Broken.
        endless(&variant(1, &text))
    } else if held.first(Kind::GuestMemory).is_none() {
        // FromInspector::Fact: a name, of what, a value.
        let name = [&1_u64.to_le_bytes()[..], b"x"].concat();
        endless(&variant(1, &[&name[..], &text, &text].concat()))
    } else {
        // FromLoader::Loaded.
        endless(&loaded(arch::ENTRY.0, &vec![0; 8 * arch::ENTRY.1]))
    }
}

fn endless(message: &[u8]) -> Done {
    loop {
        if let Err(errno) = send(0, message, &[], &[]) {
            return Done::Refused(errno);
        }
    }
}

fn peers() -> Vec<Attempt> {
    let add = |name: &str, row: &str, seats, act: fn(&Held) -> Done, words: &'static str| {
        Attempt::new(PEER, name, row, Act::Do(act)).by(seats).expect(Expect::CutOff(words))
    };
    let block = "virtio-blk-0";
    let mut all = vec![
        add("vhost: no message", "vhost-user: bytes that are no message", BLOCK, |h| front(h, &[0xff; 100], 0), block),
        add("vhost: too long", "vhost-user: an answer of 4 GiB", BLOCK, |h| front(h, &too_long(), 0), block),
        add("vhost: another answer", "vhost-user: the answer to another question", BLOCK, |h| answer(h, 24, 0), block),
        add("vhost: unasked", "vhost-user: an answer twice", BLOCK, twice, block),
        add("vhost: a question", "vhost-user: a question for an answer", BLOCK, question, block),
        add("vhost: a descriptor", "vhost-user: an answer with descriptors", BLOCK, |h| answer(h, 1, 8), block),
    ];
    // A vCPU thread speaks when the guest runs already, which may be over before anybody listens.
    let unread_as = |name: &str, row: &str, seats, act: fn(&Held) -> Done, words| {
        Attempt::new(PEER, name, row, Act::Do(act)).by(seats).expect(Expect::CutOffOrUnread(words))
    };
    let unread = |name: &str, seats, act: fn(&Held) -> Done, words| unread_as(name, name, seats, act, words);
    let no_message = "vhost-user: bytes that are no message";
    all.push(unread_as("vhost: no front end", no_message, VMM, |h| front(h, &[0xff; 100], 0), block));
    let row = "vhost-user: a request of 4 GiB";
    all.push(unread_as("vhost: too long a request", row, VMM, |h| front(h, &too_long(), 0), block));
    all.push(unread("bytes that are no register value", SERIAL, |h| packet(h, 0), "serial"));
    all.push(unread("a register value with descriptors", SERIAL, |h| packet(h, 4), "serial"));
    all.push(unread("bytes that are no register read", VMM, |h| packet(h, 0), "serial"));
    all.push(unread("an impossible index in the shared ring", SERIAL, scribble, "serial"));
    all.push(unread("impossible indices in the shared ring", VMM, scribble, "serial"));
    all
}

/// A message of vhost-user: request, flags (version 1, or 0x5 for an answer), size, content.
fn vhost(request: u32, flags: u32, content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&request.to_le_bytes()[..], &flags.to_le_bytes(), &size.to_le_bytes(), content].concat()
}

fn too_long() -> Vec<u8> {
    let mut message = vhost(1, 0x5, &[0; 8]);
    message.splice(8..12, [0xff; 4]);
    message
}

fn front(held: &Held, bytes: &[u8], fds: usize) -> Done {
    match held.first(Kind::Stream) {
        Some(socket) => done(send(socket, bytes, &vec![0; fds], &[])),
        None => Done::NotThere,
    }
}

fn answer(held: &Held, request: u32, fds: usize) -> Done {
    front(held, &vhost(request, 0x5, &[0; 8]), fds)
}

/// Two answers to the first question, of which the second is taken for that to the next.
fn twice(held: &Held) -> Done {
    let features = (1_u64 << 32 | 1 << 30).to_le_bytes();
    front(held, &[vhost(1, 0x5, &features), vhost(1, 0x5, &features)].concat(), 0)
}

fn question(held: &Held) -> Done {
    front(held, &vhost(1, 0x1, &[]), 0)
}

fn packet(held: &Held, fds: usize) -> Done {
    match held.first(Kind::Packets) {
        Some(socket) => done(send(socket, &[0xff; 3], &vec![0; fds], &[])),
        None => Done::NotThere,
    }
}

/// Overwrites the ring that it shares with another process.
fn scribble(held: &Held) -> Done {
    let Some((address, bytes)) = held.ring() else { return Done::NotThere };
    raw::fill(address, bytes, 0xfe);
    Done::Sent
}

fn entries() -> Vec<Attempt> {
    let add = |name: &str, act: fn(&Held) -> Done| {
        let words = "the guest cannot be entered";
        Attempt::new(GUEST_MEMORY, name, name, Act::Do(act)).by(LOADER).expect(Expect::CutOff(words))
    };
    vec![
        add("the loader's answer: an entry point beyond memory", |_| entry(0, NOWHERE)),
        add("the loader's answer: an address of boot data beyond memory", |_| entry(1, NOWHERE)),
        add("the loader's answer: the last boot address beyond memory", |_| entry(arch::ENTRY.1 - 1, NOWHERE)),
        add("the loader's answer: an address that wraps around", |_| entry(1, u64::MAX)),
        add("the loader's answer: an entry of another architecture", |_| foreign_entry()),
    ]
}

/// `FromLoader::Loaded` with usable addresses but one, and then the loader's end.
fn entry(at: usize, address: u64) -> Done {
    let words = (0..arch::ENTRY.1).map(|index| if index == at { address } else { 0x4000_0000 >> (index.min(1) * 10) });
    answered(arch::ENTRY.0, &words.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
}

/// The entry of PVH on aarch64, that of arm64 on x86_64: variants 1 and 2.
fn foreign_entry() -> Done {
    if arch::ENTRY.0 == 2 { answered(1, &[0; 12]) } else { answered(2, &[0; 16]) }
}

/// `FromLoader::Loaded`.
fn loaded(variant: u32, words: &[u8]) -> Vec<u8> {
    [&1_u32.to_le_bytes()[..], &variant.to_le_bytes(), words].concat()
}

fn answered(variant: u32, words: &[u8]) -> Done {
    match send(0, &loaded(variant, words), &[], &[]) {
        Ok(_) => raw::call(libc::SYS_exit_group, [0; 6]).into(),
        Err(errno) => Done::Refused(errno),
    }
}

/// Regions of a memory table as the control thread would send it: guest address, size, user address, offset.
fn tables() -> Vec<Attempt> {
    let add = |name: &str, act: fn(&Held) -> Done| {
        let row = format!("the vmm's memory table: {name}");
        let act = Act::Do(act);
        let words = "the virtio-blk-0 process failed: the vhost-user front end broke the protocol";
        Attempt::new(GUEST_MEMORY, &row, &row, act).by(&[Seat::VmmControl]).expect(Expect::CutOff(words))
    };
    const MIB: u64 = 1 << 20;
    vec![
        add("a region beyond its file", |h| table(h, &[[0, 128 * MIB, 0, 0]], Kind::GuestMemory)),
        add("an offset beyond the file", |h| table(h, &[[0, MIB, 0, 1 << 40]], Kind::GuestMemory)),
        add("a region that wraps around", |h| table(h, &[[u64::MAX - 4095, MIB, 0, 0]], Kind::GuestMemory)),
        add("an offset that wraps around", |h| table(h, &[[0, MIB, 0, u64::MAX - 4095]], Kind::GuestMemory)),
        add("regions that overlap", |h| table(h, &[[0, MIB, 0, 0], [4096, MIB, MIB, MIB]], Kind::GuestMemory)),
        add("a region of no bytes", |h| table(h, &[[0, 0, 0, 0]], Kind::GuestMemory)),
        add("an eventfd for memory", |h| table(h, &[[0, MIB, 0, 0]], Kind::Anonymous)),
        add("a queue outside of it", queue),
    ]
}

/// `NEED_REPLY` beside version 1 of vhost-user.
const ANSWER_ME: u32 = 0x9;

/// Speaks as the vmm's front end; in the end it holds whether the device process took the last message.
struct FrontEnd(usize);

impl FrontEnd {
    /// What comes before a memory table: the owner, and features with REPLY_ACK and CONFIG, so that all is answered.
    fn greet(held: &Held) -> Result<Self, Done> {
        let socket = held.first(Kind::Stream).ok_or(Done::NotThere)?;
        let features = (1_u64 << 32 | 1 << 30).to_le_bytes();
        let protocol = (1_u64 << 9 | 1 << 3).to_le_bytes();
        let end = Self(socket);
        // VHOST_USER_SET_OWNER, GET_FEATURES; SET_FEATURES, GET_PROTOCOL_FEATURES; SET_PROTOCOL_FEATURES.
        end.send(&[vhost(3, 1, &[]), vhost(1, 1, &[])].concat(), &[])?;
        end.answer().ok_or(Done::NotThere)?;
        end.send(&[vhost(2, 1, &features), vhost(15, 1, &[])].concat(), &[])?;
        end.answer().ok_or(Done::NotThere)?;
        end.send(&vhost(16, 1, &protocol), &[])?;
        Ok(end)
    }

    fn send(&self, bytes: &[u8], fds: &[usize]) -> Result<(), Done> {
        send(self.0, bytes, fds, &[]).map(drop).map_err(Done::Refused)
    }

    /// Sends a request; whether it was accepted.
    fn ask(&self, request: u32, words: &[u64], fds: &[usize]) -> Result<bool, Done> {
        let content: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.send(&vhost(request, ANSWER_ME, &content), fds)?;
        Ok(self.answer().is_some_and(|answer| answer == [0; 8]))
    }

    /// The number in an answer: behind a header of 12 bytes. None from an end that hangs up.
    fn answer(&self) -> Option<Vec<u8>> {
        let answer = [0_u64; 4];
        let vector = [raw::address(&answer), 20];
        let header = [0, 0, raw::address(&vector), 1, 0, 0, 0];
        let wait_all = libc::MSG_WAITALL as usize;
        let length = raw::call(libc::SYS_recvmsg, [self.0, raw::address(&header), wait_all, 0, 0, 0]);
        (length == Ok(20)).then(|| raw::read(&answer, 12))
    }
}

/// Sends a memory table that must not be accepted.
fn table(held: &Held, regions: &[[u64; 4]], kind: Kind) -> Done {
    FrontEnd::greet(held).and_then(|end| share(&end, held, regions, kind)).map_or_else(|done| done, refused)
}

fn refused(is_accepted: bool) -> Done {
    if is_accepted { Done::Succeeded(0) } else { Done::Sent }
}

fn share(end: &FrontEnd, held: &Held, regions: &[[u64; 4]], kind: Kind) -> Result<bool, Done> {
    let count = u64::try_from(regions.len()).unwrap_or(u64::MAX);
    let words: Vec<_> = std::iter::once(count).chain(regions.iter().copied().flatten()).collect();
    end.ask(5, &words, &vec![held.number(kind); regions.len()])
}

/// A right memory table, which is accepted, and then a queue whose rings are elsewhere.
fn queue(held: &Held) -> Done {
    let talk = || {
        let end = FrontEnd::greet(held)?;
        // VHOST_USER_SET_VRING_NUM: index 0, 8 entries; VHOST_USER_SET_VRING_ADDR: index and flags, the rings, the log.
        if !share(&end, held, &[[0, 1 << 20, 0, 0]], Kind::GuestMemory)? || !end.ask(8, &[8 << 32], &[])? {
            return Err(Done::NotThere);
        }
        end.ask(9, &[0, NOWHERE, NOWHERE, NOWHERE, 0], &[])
    };
    talk().map_or_else(|done| done, refused)
}

fn silence() -> Vec<Attempt> {
    let row = "to answer nothing, and not to end when told";
    let add = |seats, expect| {
        let names: &[Seat] = seats;
        let name = format!("silent {}", names.first().map_or("", |seat| seat.name()));
        Attempt::new(SILENCE, &name, row, Act::Do(silent)).by(seats).expect(expect)
    };
    vec![
        add(LOADER, Expect::Deadline(23, "the boot files were not loaded within 60 seconds")),
        add(&[Seat::VmmControl], Expect::Deadline(23, "within 30 seconds")),
        add(SERIAL, Expect::Deadline(0, "the guest powered off")),
        add(BLOCK, Expect::Deadline(23, "virtio-blk-0")),
        add(&[Seat::VmmVcpu], Expect::Terminated),
        add(INSPECTOR, Expect::Deadline(3, "within 30 seconds")),
    ]
}

/// Takes every message of the broker and obeys none.
fn silent(_held: &Held) -> Done {
    let buffer = [0_u8; 64];
    let vector = [raw::address(&buffer), buffer.len()];
    loop {
        let header = [0, 0, raw::address(&vector), 1, 0, 0, 0];
        match raw::call(libc::SYS_recvmsg, [0, raw::address(&header), 0, 0, 0, 0]) {
            // The broker is gone.
            Ok(0) => return raw::call(libc::SYS_exit_group, [0; 6]).into(),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Done::Refused(errno),
        }
    }
}

fn done(sent: Result<usize, Errno>) -> Done {
    sent.map_or_else(Done::Refused, |_bytes| Done::Sent)
}

/// `sendmsg` with descriptors and an address.
fn send(socket: usize, bytes: &[u8], fds: &[usize], address: &[u8]) -> Result<usize, Errno> {
    const HEADER_BYTES: usize = 16;
    let vector = [raw::address(bytes), bytes.len()];
    let fds: Vec<u8> = fds.iter().flat_map(|&fd| u32::try_from(fd).unwrap_or(u32::MAX).to_ne_bytes()).collect();
    let length = HEADER_BYTES + fds.len();
    // struct cmsghdr: the length, SOL_SOCKET, SCM_RIGHTS.
    let mut control = [&length.to_ne_bytes()[..], &1_u32.to_ne_bytes(), &1_u32.to_ne_bytes(), &fds].concat();
    control.resize(length.next_multiple_of(8), 0);
    let control = if fds.is_empty() { &[][..] } else { &control };
    // struct msghdr: address, vectors, control, flags.
    let name = if address.is_empty() { 0 } else { raw::address(address) };
    let header = [name, address.len(), raw::address(&vector), 1, raw::address(control), control.len(), 0];
    let no_signal = libc::MSG_NOSIGNAL as usize;
    raw::call(libc::SYS_sendmsg, [socket, raw::address(&header), no_signal, 0, 0, 0])
}
