//! Error numbers of the kernel (include/uapi/asm-generic/errno-base.h and errno.h), as far as a boot meets them.

use crate::explain::names::Names;

/// The number, its name, what it means.
const ERRORS: &[(i32, &str, &str)] = &[
    (1, "EPERM", "not permitted"),
    (2, "ENOENT", "a file is not there"),
    (5, "EIO", "an input or output failed, or a file ends too early"),
    (6, "ENXIO", "there is no such device"),
    (7, "E2BIG", "the arguments are too long"),
    (8, "ENOEXEC", "the file is no program that this kernel can run"),
    (11, "EAGAIN", "a resource is not there for the moment"),
    (12, "ENOMEM", "there is not enough memory"),
    (13, "EACCES", "the file may not be executed"),
    (14, "EFAULT", "a bad address"),
    (15, "ENOTBLK", "a block device is needed"),
    (16, "EBUSY", "something is in use"),
    (17, "EEXIST", "it is there already"),
    (18, "EXDEV", "a link goes across file systems"),
    (19, "ENODEV", "there is no such device, or the file system type is not known"),
    (20, "ENOTDIR", "a part of the path is no directory"),
    (21, "EISDIR", "it is a directory"),
    (22, "EINVAL", "what was given makes no sense"),
    (23, "ENFILE", "too many files are open"),
    (24, "EMFILE", "too many files are open"),
    (26, "ETXTBSY", "the program file is still open for writing"),
    (27, "EFBIG", "the file is too large"),
    (28, "ENOSPC", "no space is left"),
    (30, "EROFS", "it can only be read"),
    (32, "EPIPE", "nobody reads"),
    (36, "ENAMETOOLONG", "a name is too long"),
    (38, "ENOSYS", "the kernel does not have this function"),
    (40, "ELOOP", "too many links or interpreters lead to one another"),
    (52, "EBADE", "an exchange is invalid"),
    (61, "ENODATA", "there is no data"),
    (74, "EBADMSG", "a checksum is wrong"),
    (75, "EOVERFLOW", "a number is too large"),
    (79, "ELIBACC", "a shared library cannot be reached"),
    (80, "ELIBBAD", "the interpreter of the program is damaged or for another machine"),
    (84, "EILSEQ", "bytes are in no valid order"),
    (95, "EOPNOTSUPP", "it is not supported"),
    (110, "ETIMEDOUT", "it took too long"),
    (117, "EUCLEAN", "the structure of the file system is damaged"),
    (121, "EREMOTEIO", "the device reports an error"),
    (126, "ENOKEY", "a key is not there"),
    (129, "EKEYREJECTED", "a signature was rejected"),
    (517, "EPROBE_DEFER", "a driver waits for another one"),
];

/// Binds `error-name` and `error-meaning` of an error number as the kernel prints it, with or without its sign.
pub(crate) fn bind(number: &str, names: &mut Names) {
    let Ok(number) = number.trim_start_matches('-').parse::<i32>() else { return };
    if let Some((_, name, meaning)) = ERRORS.iter().find(|(known, _, _)| *known == number) {
        names.bind("error-name", *name);
        names.bind("error-meaning", *meaning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_have_their_names() {
        for (text, name) in [("-2", Some("ENOENT")), ("-26", Some("ETXTBSY")), ("-80", Some("ELIBBAD")), ("-999", None)]
        {
            let mut names = Names::default();
            bind(text, &mut names);
            assert_eq!(names.get("error-name"), name);
        }
        assert!(ERRORS.is_sorted_by_key(|(number, _, _)| *number));
    }
}
