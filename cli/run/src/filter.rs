//! Which system calls stop and ask the supervisor: a classic BPF program for seccomp.
//!
//! The filter sees numbers only, never memory, so it cannot tell one path from another. It lets
//! through everything that numbers alone can rule out:
//!
//! | call | asks the supervisor when |
//! |---|---|
//! | `connect` | always (no number says where to) |
//! | `sendto` | an address is given; `send` on a connected socket is `sendto` without one |
//! | `open`, `openat` | the flags could be those of a resolver reading a file, see [`NOT_A_RESOLVER`] |
//! | `openat2` | always; its flags are in memory, and it is rare |
//!
//! `io_uring_setup` answers `ENOSYS`: a ring would open and connect behind the filter's back, and
//! every program that uses rings has a path for kernels without them.
//!
//! System calls of another architecture (a 32-bit program on a 64-bit kernel) pass untouched.

use libc::sock_filter;

/// A call with one of these flags is not a resolver that reads its configuration, so it never
/// waits for the supervisor: writers, directory walks, and compilers (which add `O_NOCTTY`).
pub(crate) const NOT_A_RESOLVER: u32 = (libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_NOCTTY
    | libc::O_DIRECTORY
    | libc::O_PATH) as u32;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

// Offsets in `struct seccomp_data` (linux/seccomp.h): nr, arch, instruction pointer, six arguments.
const NR: u32 = 0;
const ARCH: u32 = 4;
/// The low half of an argument; the high half is 4 bytes further (both architectures are little endian).
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// What a matched system call leads to; the blocks stand behind the table in this order.
#[derive(Clone, Copy)]
enum Then {
    Notify,
    Unsupported,
    IfAddressed,
    IfOpenFlags(u32),
}

/// The calls we look at, the most frequent first.
fn table() -> Vec<(i64, Then)> {
    vec![
        (libc::SYS_openat, Then::IfOpenFlags(2)),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, Then::IfOpenFlags(1)),
        (libc::SYS_sendto, Then::IfAddressed),
        (libc::SYS_connect, Then::Notify),
        (libc::SYS_openat2, Then::Notify),
        (libc::SYS_io_uring_setup, Then::Unsupported),
    ]
}

/// The whole program, ready for `seccomp(SECCOMP_SET_MODE_FILTER)`.
pub(crate) fn program() -> Vec<sock_filter> {
    let mut program = vec![load(ARCH), jump_if_equal(AUDIT_ARCH, 1, 0), answer(libc::SECCOMP_RET_ALLOW), load(NR)];
    for (number, then) in table() {
        let block = block(then);
        let skip = u8::try_from(block.len()).expect("a block has a handful of instructions");
        program.push(jump_if_equal(number as u32, 0, skip));
        program.extend(block);
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

fn block(then: Then) -> Vec<sock_filter> {
    let (ask, allow) = (answer(libc::SECCOMP_RET_USER_NOTIF), answer(libc::SECCOMP_RET_ALLOW));
    match then {
        Then::Notify => vec![ask],
        Then::Unsupported => vec![answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32)],
        Then::IfAddressed => {
            vec![load(argument(4)), jump_if_equal(0, 0, 2), load(argument(4) + 4), jump_if_equal(0, 1, 0), ask, allow]
        }
        Then::IfOpenFlags(index) => vec![
            load(argument(index)),
            statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, NOT_A_RESOLVER),
            jump_if_equal(0, 0, 1),
            ask,
            allow,
        ],
    }
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn jump_if_equal(k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_asks() {
        assert_eq!(verdict(AUDIT_ARCH, libc::SYS_connect, [3, 0x7fff_0000, 16, 0, 0, 0]), libc::SECCOMP_RET_USER_NOTIF);
    }

    #[test]
    fn a_send_on_a_connected_socket_does_not_ask() {
        assert_eq!(verdict(AUDIT_ARCH, libc::SYS_sendto, [3, 1, 1, 0, 0, 0]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn a_send_to_an_address_asks_whichever_half_of_the_pointer_is_set() {
        for pointer in [0x1000, 0x7fff_0000_0000, 0x7fff_1234_5678] {
            assert_eq!(verdict(AUDIT_ARCH, libc::SYS_sendto, [3, 1, 1, 0, pointer, 16]), libc::SECCOMP_RET_USER_NOTIF);
        }
    }

    #[test]
    fn only_an_open_that_may_be_a_resolvers_asks() {
        let open = |flags: i32| verdict(AUDIT_ARCH, libc::SYS_openat, [0, 1, flags as u64, 0, 0, 0]);
        assert_eq!(open(libc::O_RDONLY | libc::O_CLOEXEC), libc::SECCOMP_RET_USER_NOTIF);
        assert_eq!(
            open(libc::O_RDONLY | libc::O_CLOEXEC | 0o100_000),
            libc::SECCOMP_RET_USER_NOTIF,
            "musl's O_LARGEFILE"
        );
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_DIRECTORY, libc::O_NOCTTY, libc::O_PATH] {
            assert_eq!(open(flags), libc::SECCOMP_RET_ALLOW, "flags {flags:#o}");
        }
    }

    #[test]
    fn a_ring_does_not_exist() {
        assert_eq!(
            verdict(AUDIT_ARCH, libc::SYS_io_uring_setup, [0; 6]),
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32
        );
    }

    #[test]
    fn other_calls_and_other_architectures_pass() {
        for number in [libc::SYS_read, libc::SYS_write, libc::SYS_sendmsg, libc::SYS_execve] {
            assert_eq!(verdict(AUDIT_ARCH, number, [0; 6]), libc::SECCOMP_RET_ALLOW);
        }
        let i386 = 0x4000_0003;
        assert_eq!(verdict(i386, libc::SYS_connect, [0; 6]), libc::SECCOMP_RET_ALLOW);
    }

    /// Runs the program over one system call, as the kernel's interpreter does.
    fn verdict(arch: u32, number: i64, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend((number as u32).to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
        let word = |at: u32| {
            let at = at as usize;
            u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"))
        };
        let (program, mut accumulator, mut at) = (program(), 0u32, 0usize);
        loop {
            let step = program[at];
            at += 1;
            match u32::from(step.code) {
                0x20 => accumulator = word(step.k),
                0x54 => accumulator &= step.k,
                0x15 => at += usize::from(if accumulator == step.k { step.jt } else { step.jf }),
                0x06 => return step.k,
                other => panic!("instruction {other:#x} is not one we emit"),
            }
        }
    }
}
