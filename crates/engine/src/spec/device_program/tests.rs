use serde_json::{Value, json};

use super::*;

fn rules(value: Value) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_value(value).unwrap()
}

/// The few instructions we use, as the kernel runs them.
fn run(program: &[Instruction], kind: i32, access: i32, major: u64, minor: u64) -> bool {
    let context = [u64::try_from(access << 16 | kind).unwrap(), major, minor];
    let mut registers = [0_u64; 11];
    let mut at = 0_usize;
    loop {
        let [code, pair, o0, o1, v0, v1, v2, v3] = program[at];
        let (target, source) = (usize::from(pair & 15), usize::from(pair >> 4));
        let offset = usize::try_from(i16::from_ne_bytes([o0, o1])).unwrap();
        let value = i64::from(i32::from_ne_bytes([v0, v1, v2, v3])).cast_unsigned();
        at += 1;
        match code {
            LOAD_WORD => registers[target] = context[offset / 4],
            MOVE => registers[target] = value,
            MOVE_REGISTER => registers[target] = registers[source],
            AND => registers[target] &= value,
            SHIFT_RIGHT => registers[target] >>= value,
            JUMP => at += offset,
            JUMP_NOT_EQUAL if registers[target] != value => at += offset,
            JUMP_IF_SET if registers[target] & value != 0 => at += offset,
            JUMP_NOT_EQUAL | JUMP_IF_SET => {}
            EXIT => return registers[0] == 1,
            other => panic!("{other:#x}"),
        }
    }
}

#[test]
fn without_a_rule_everything_is_refused() {
    let program = assemble(&[]).unwrap();
    assert!(!run(&program, CHARACTER, READ, 1, 3));
}

#[test]
fn a_privileged_container_needs_no_program() {
    assert_eq!(assemble(&rules(json!([{ "allow": true, "access": "rwm" }]))), None);
    let all = json!([{ "allow": false, "type": "c", "major": 1, "access": "r" }, { "allow": true, "type": "a" }]);
    assert_eq!(assemble(&rules(all)), None, "what came before a rule for everything is forgotten");
}

#[test]
fn a_listed_device_is_open_for_the_listed_bits_and_no_other_is() {
    let program = assemble(&rules(json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "b", "access": "m" },
        { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
        { "allow": true, "type": "c", "major": 136, "access": "rwm" },
        { "allow": true, "type": "b", "major": 8, "minor": 0, "access": "r" },
    ])))
    .unwrap();
    for (kind, access, major, minor, expected) in [
        (CHARACTER, READ | WRITE, 1, 3, true),
        (CHARACTER, READ, 1, 1, false),
        (CHARACTER, READ | WRITE, 136, 77, true),
        (BLOCK, READ, 136, 77, false),
        (BLOCK, MKNOD, 8, 1, true),
        (CHARACTER, MKNOD, 8, 1, false),
        (BLOCK, READ, 8, 0, true),
        (BLOCK, READ | WRITE, 8, 0, false),
        (BLOCK, WRITE, 8, 0, false),
        (BLOCK, READ, 8, 1, false),
        (BLOCK, READ, 8, 256, false),
    ] {
        assert_eq!(run(&program, kind, access, major, minor), expected, "{kind} {access} {major}:{minor}");
    }
}

#[test]
fn bits_add_up_and_the_last_rule_for_a_bit_decides() {
    let program = assemble(&rules(json!([
        { "allow": false, "type": "a" },
        { "allow": true, "type": "b", "major": 8, "minor": 0, "access": "r" },
        { "allow": true, "type": "b", "major": 8, "minor": 0, "access": "w" },
        { "allow": true, "type": "c", "major": 10, "access": "rw" },
        { "allow": false, "type": "c", "major": 10, "minor": 1, "access": "w" },
    ])))
    .unwrap();
    assert!(run(&program, BLOCK, READ | WRITE, 8, 0));
    assert!(run(&program, CHARACTER, READ | WRITE, 10, 2));
    assert!(run(&program, CHARACTER, READ, 10, 1));
    assert!(!run(&program, CHARACTER, READ | WRITE, 10, 1));
    let open = assemble(&rules(json!([
        { "allow": true, "type": "a" },
        { "allow": false, "type": "b", "access": "rw" },
    ])))
    .unwrap();
    assert!(run(&open, CHARACTER, WRITE, 4, 0) && run(&open, BLOCK, MKNOD, 8, 0));
    assert!(!run(&open, BLOCK, READ, 8, 0));
}

#[test]
fn a_rule_for_no_device_or_no_access_opens_nothing() {
    let program = assemble(&rules(json!([
        { "allow": true, "type": "b", "major": 1_i64 << 32, "access": "rwm" },
        { "allow": true, "type": "b", "major": 8, "minor": 4_294_967_295_u32, "access": "rwm" },
        { "allow": true, "type": "b", "major": 8 },
        { "allow": true, "type": "b", "major": 8, "access": "x" },
        { "allow": true, "type": "p", "access": "rwm" },
    ])))
    .unwrap();
    for access in [MKNOD, READ, WRITE] {
        assert!(!run(&program, BLOCK, access, 8, 0) && !run(&program, BLOCK, access, 0, 0));
    }
    let wild =
        assemble(&rules(json!([{ "allow": true, "type": "b", "major": -1, "minor": 3, "access": "r" }]))).unwrap();
    assert!(run(&wild, BLOCK, READ, 99, 3) && !run(&wild, BLOCK, READ, 99, 4), "-1 is any, as in runc");
}
