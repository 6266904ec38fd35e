//! A container's device rules as a program for the kernel: on cgroup v2 there are no files to write them to.
//!
//! Pure: rules in, instructions out. What they mean: each bit of an access (read, write, mknod) is decided by the last rule
//! that names the device and the bit; what no rule names, by the last rule for everything; and if there is none, refused.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// `struct bpf_insn` in memory order.
pub(crate) type Instruction = [u8; 8];

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

// Opcodes: class, operation and whether the operand is the immediate.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP: u8 = 0x05;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_IF_SET: u8 = 0x45;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// The bits not yet allowed.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `None` if the rules allow everything: then there is nothing to ask.
pub(crate) fn assemble(rules: &[LinuxDeviceCgroup]) -> Option<Vec<Instruction>> {
    let mut everything = false;
    let mut kept: Vec<Rule> = Vec::new();
    for rule in rules {
        if rule.typ().unwrap_or_default() == LinuxDeviceType::A {
            // As the v1 controller: the numbers and bits beside it count for nothing, and what was said before neither.
            everything = rule.allow();
            kept.clear();
        } else if let Some(rule) = Rule::read(rule) {
            // Said again, for instance by a device that is among the default ones: the last place counts.
            kept.retain(|k| *k != rule);
            kept.push(rule);
        }
    }
    if everything && kept.iter().all(|rule| rule.allow) {
        return None;
    }
    // struct bpf_cgroup_dev_ctx { access << 16 | kind, major, minor }
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, WANTED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in kept.iter().rev() {
        rule.append(&mut program);
    }
    program.extend(answer(everything));
    Some(program)
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: i32,
    /// `None`: any.
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    /// `None` for a rule that no device and no access can match.
    fn read(rule: &LinuxDeviceCgroup) -> Option<Self> {
        let kind = match rule.typ()? {
            LinuxDeviceType::B => BLOCK,
            LinuxDeviceType::C | LinuxDeviceType::U => CHARACTER,
            LinuxDeviceType::A | LinuxDeviceType::P => return None,
        };
        let access = rule.access().as_deref()?.chars().fold(0, |bits, letter| match letter {
            'm' => bits | MKNOD,
            'r' => bits | READ,
            'w' => bits | WRITE,
            _ => bits,
        });
        // Negative is any, as in runc. The kernel's numbers have 12 and 20 bits: larger ones are of no device.
        let number = |n: Option<i64>| n.filter(|n| *n >= 0).map(i32::try_from).transpose().ok();
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        (access != 0).then_some(Self { allow: rule.allow(), kind, major, minor, access })
    }

    fn append(&self, program: &mut Vec<Instruction>) {
        let conditions = [(KIND, Some(self.kind)), (MAJOR, self.major), (MINOR, self.minor)];
        let conditions: Vec<_> =
            conditions.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
        let body = if self.allow {
            let rest = instruction(AND, WANTED, 0, 0, !self.access);
            let [allow, exit] = answer(true);
            [rest, instruction(JUMP_NOT_EQUAL, WANTED, 0, 2, 0), allow, exit]
        } else {
            let [refuse, exit] = answer(false);
            let hit = instruction(JUMP_IF_SET, WANTED, 0, 1, self.access);
            [hit, instruction(JUMP, 0, 0, 2, 0), refuse, exit]
        };
        // Over the conditions that follow and the body, to the next rule.
        let mut distance = conditions.len() + body.len();
        for (register, value) in conditions {
            distance -= 1;
            let over = i16::try_from(distance).expect("a rule has at most seven instructions");
            program.push(instruction(JUMP_NOT_EQUAL, register, 0, over, value));
        }
        program.extend(body);
    }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE, RESULT, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> Instruction {
    // Two bit fields of four: which of them is low depends on the byte order.
    let registers = if cfg!(target_endian = "little") { source << 4 | target } else { target << 4 | source };
    let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    [code, registers, o0, o1, v0, v1, v2, v3]
}

#[cfg(test)]
#[path = "device_program/tests.rs"]
mod tests;
