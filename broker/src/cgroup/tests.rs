//! Where the broker's cgroup is, and the life of a machine's cgroup where this host lets one be made.

use super::place::find;
use super::*;

const MOUNTS: &str = "22 1 0:21 / /proc rw - proc proc rw\n\
    30 22 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n\
    31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

#[test]
fn own_cgroup_is_found_below_its_mount() {
    let folder = |mounts, own| find(mounts, own).map(|path| path.display().to_string());
    let at = |path: &str| Some(format!("/sys/fs/cgroup/unified{path}"));
    assert_eq!(folder(MOUNTS, "4:memory:/x\n0::/a/b\n"), at("/a/b"));
    assert_eq!(folder(MOUNTS, "0::/\n"), at("/"));
    assert_eq!(find(MOUNTS, "0::/\n"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    assert_eq!(folder(MOUNTS, "4:memory:/x\n0::/user.slice/a.scope\n"), at("/user.slice/a.scope"));
    assert_eq!(folder("", "0::/\n"), None);
    assert_eq!(folder(MOUNTS, "0::/../b\n"), None);
    assert_eq!(folder(MOUNTS, "4:memory:/x\n"), None);
    assert_eq!(folder("22 1 0:21 / /proc rw - proc proc rw\n", "0::/\n"), None);
    let part = "30 22 0:26 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    assert_eq!(folder(part, "0::/a/b\n"), Some("/sys/fs/cgroup/b".to_owned()));
    assert_eq!(folder(part, "0::/other\n"), None);
}

#[test]
fn numbers_are_found_by_their_whole_key() {
    assert_eq!(number("oom_kill 3\noom 1\n", "oom"), Some(1));
    assert_eq!(number("usage_usec 1500\n", "usage_usec"), Some(1500));
    assert_eq!(number("usage_usec x\n", "usage_usec"), None);
}

#[test]
fn cgroup_is_there_and_locked_for_as_long_as_it_is_used() {
    let cgroup = match Confinement::new(&RunLimits::default(), 1 << 21, 1) {
        Confinement::Cgroup(cgroup) => cgroup,
        Confinement::Rlimits(why) => {
            eprintln!("skipped: no cgroup can be made here: {:#}", anyhow::Error::from(why));
            return;
        }
    };
    let folder = cgroup.folder.clone();
    assert!(!cgroup.holds(nix::unistd::Pid::this()));
    assert_eq!(cgroup.cpu_time(), Some(Duration::ZERO));
    assert!(!cgroup.ran_out_of_memory() && !cgroup.had_oom_kill());
    remove_left_behind(folder.parent().unwrap());
    assert!(folder.is_dir(), "a locked cgroup was taken for one that was left behind");
    drop(cgroup);
    assert!(!folder.exists());
}

#[test]
fn folder_that_nobody_locks_is_removed_and_another_is_not() {
    let parent = tempfile::tempdir().unwrap();
    let folder = |name: &str| parent.path().join(name);
    let others = ["other", "bulkhead-1", "bulkhead-test-1", "bulkhead-1-x", "bulkhead--1", "xbulkhead-1-1"];
    for name in others.into_iter().chain(["bulkhead-1-1", "bulkhead-2-1", "bulkhead-3-broker"]) {
        fs::create_dir(folder(name)).unwrap();
    }
    let lock = File::open(folder("bulkhead-2-1")).unwrap();
    lock.lock().unwrap();
    remove_left_behind(parent.path());
    assert!(!folder("bulkhead-1-1").exists() && !folder("bulkhead-3-broker").exists());
    assert!(folder("bulkhead-2-1").exists() && others.iter().all(|name| folder(name).exists()));
    drop(lock);
    let (made, _lock) = make(parent.path()).unwrap();
    let (again, _lock) = make(parent.path()).unwrap();
    assert_ne!(made, again);
    remove_left_behind(parent.path());
    assert!(made.exists() && again.exists() && !folder("bulkhead-2-1").exists());
}

#[test]
fn memory_that_the_kernel_could_take_back_does_not_use_the_limit_up() {
    let stat = |anon: u64, file: u64, shmem: u64| {
        format!("anon {}\nfile {}\nkernel 1048576\nkernel_stack 9\nshmem {}\n", anon << 20, file << 20, shmem << 20)
    };
    assert!(!is_used_up(&stat(10, 90, 20), 96 << 20));
    assert!(!is_used_up(&stat(10, 90, 83), 96 << 20));
    assert!(is_used_up(&stat(10, 90, 84), 96 << 20));
    assert!(!is_used_up("", 96 << 20));
}
