//! The user and group id that a jailed process gets on the host.

use super::SpawnError;
use std::fmt;
use std::sync::OnceLock;

/// The user and group id of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    uid: u32,
    gid: u32,
    privileged: bool,
}

/// Above the ranges that distributions, systemd and subuid hand out.
const FIRST: u32 = 1_900_000_000;
/// As many as there are below 2^31, from which on some programs take an id for a negative number.
const COUNT: u32 = (1 << 31) - FIRST;
/// A container's range is used from this many ids in its upper half on.
const LEAST_HALF: u32 = 4096;
/// The number that the kernel gives the first of the namespaces that are made while it runs (`PROC_DYNAMIC_FIRST` of
/// linux/proc_ns.h); it takes the lowest number that is free.
const FIRST_NAMESPACE: u64 = 0xf000_0000;

/// Where the ids of this broker's processes come from.
#[derive(Debug)]
pub(super) struct Source {
    /// The broker's uid_map, if it may choose from it.
    map: Option<String>,
    own: Ids,
}

impl Source {
    /// Of the calling process: as root, ids that no one else has; otherwise, and as root of a container that has no ids to
    /// spare, the user's own.
    ///
    /// # Errors
    /// When /proc/self/uid_map cannot be read.
    pub(super) fn own() -> Result<&'static Self, SpawnError> {
        // A process's map is written once (user_namespaces(7)).
        static OWN: OnceLock<Source> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let map = std::fs::read_to_string("/proc/self/uid_map").map_err(SpawnError::OwnIds)?;
        let can_choose = nix::unistd::geteuid().is_root() && choose(&map, 0).is_some();
        Ok(OWN.get_or_init(|| Self { map: can_choose.then_some(map), own: Ids::of_broker() }))
    }

    /// Whether the broker may choose.
    pub(super) fn privileged(&self) -> bool {
        self.map.is_some()
    }

    /// The ids of the process that is alone in the user namespace with this inode number.
    ///
    /// The number makes them unique: of all namespaces of the host that live, whichever container their processes are in,
    /// no two have the same, and this one lives for as long as a process that has the ids.
    pub(super) fn ids(&self, namespace: u64) -> Ids {
        // On no known kernel is the difference more than COUNT.
        let number = namespace.saturating_sub(FIRST_NAMESPACE) % u64::from(COUNT);
        let number = u32::try_from(number).unwrap_or(0);
        match self.map.as_deref().and_then(|map| choose(map, number)) {
            Some(id) => Ids { uid: id, gid: id, privileged: true },
            None => self.own,
        }
    }
}

impl Ids {
    /// The ids of the broker itself.
    #[must_use]
    pub fn of_broker() -> Self {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        Self { uid: uid.as_raw(), gid: gid.as_raw(), privileged: false }
    }

    /// The user id on the host.
    #[must_use]
    pub fn uid(self) -> u32 {
        self.uid
    }

    /// The group id on the host.
    #[must_use]
    pub fn gid(self) -> u32 {
        self.gid
    }

    /// Whether the broker may choose: then supplementary groups are given up as well.
    #[must_use]
    pub fn privileged(self) -> bool {
        self.privileged
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// An id for the process with `number`, out of a uid_map (user_namespaces(7)): lines of first id inside, first id outside,
/// count. In a container, the upper half of its last range, where its own users are not.
fn choose(map: &str, number: u32) -> Option<u32> {
    let ranges: Vec<(u32, u32)> = map
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u32>);
            match (numbers.next(), numbers.next(), numbers.next()) {
                (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) => Some((first, count)),
                _ => None,
            }
        })
        .collect();
    let wanted = FIRST.checked_add(number)?;
    let holds = |&(first, count): &(u32, u32)| wanted.checked_sub(first).is_some_and(|offset| offset < count);
    if ranges.iter().any(holds) {
        return Some(wanted);
    }
    let (first, count) = ranges.last()?;
    let half = count / 2;
    let offset = half.checked_add(number.checked_rem(half)?)?;
    if half < LEAST_HALF { None } else { first.checked_add(offset) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_the_namespace_decides() {
        let source = Source { map: Some("0 0 4294967295\n".to_owned()), own: Ids::of_broker() };
        assert_eq!(source.ids(FIRST_NAMESPACE + 7).uid(), FIRST + 7);
        assert_eq!(source.ids(FIRST_NAMESPACE + u64::from(COUNT) - 1).uid(), (1 << 31) - 1);
        for strange in [0, 1, FIRST_NAMESPACE + u64::from(COUNT), u64::MAX] {
            assert!((FIRST..1 << 31).contains(&source.ids(strange).uid()), "{strange}");
        }
        let own = Ids::of_broker();
        assert_eq!(Source { map: None, own }.ids(FIRST_NAMESPACE + 7), own);
    }

    #[test]
    fn host_and_container_give_ids_of_their_own() {
        assert_eq!(choose("         0          0 4294967295\n", 5), Some(FIRST + 5));
        assert_eq!(choose("0 100000 65536\n", 65), Some(32768 + 65));
        assert_eq!(choose("0 100000 65536\n", 32768 + 65), Some(32768 + 65));
    }

    #[test]
    fn container_with_one_id_gives_none() {
        assert_eq!(choose("0 1000 1\n", 5), None);
        assert_eq!(choose("0 1000 10\n", 5), None);
        assert_eq!(choose("", 0), None);
    }
}
