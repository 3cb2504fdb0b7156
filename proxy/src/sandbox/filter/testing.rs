//! The kernel's interpreter, as far as `compile` uses it.

use super::*;

pub(in crate::sandbox) fn run(
    program: &[libc::sock_filter],
    architecture: u32,
    call: libc::c_long,
    arguments: [u64; 6],
) -> u32 {
    let (mut at, mut value) = (0, 0);
    loop {
        let libc::sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let code = u32::from(code);
        let next = |holds: bool| usize::from(if holds { jt } else { jf });
        if code == BPF_RET | BPF_K {
            return k;
        } else if code == BPF_LD | BPF_W | BPF_ABS {
            value = match k {
                NUMBER => u32::try_from(call).expect("a number"),
                ARCHITECTURE => architecture,
                _ => {
                    let argument = arguments[(k as usize - 16) / 8];
                    if k % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
                }
            };
        } else if code == BPF_ALU | BPF_AND | BPF_K {
            value &= k;
        } else if code == BPF_JMP | BPF_JEQ | BPF_K {
            at += next(value == k);
        } else if code == BPF_JMP | BPF_JGE | BPF_K {
            at += next(value >= k);
        } else {
            panic!("instruction {code}");
        }
    }
}
