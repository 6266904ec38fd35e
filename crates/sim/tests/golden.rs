//! Scenarios with the story that is expected of them, in `golden/`. `UPDATE_GOLDEN=1` writes what happens now: read the
//! difference before it is committed.

use std::path::Path;

fn plays(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("txt");
    let expected = std::fs::read_to_string(&path).expect("the script can be read");
    let happened = skep_sim::play(&expected).expect("every invariant holds");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &happened).expect("the script can be written");
    } else if happened != expected {
        let (number, (was, is)) =
            expected.lines().zip(happened.lines()).enumerate().find(|(_, (a, b))| a != b).unwrap_or_default();
        panic!(
            "{} tells another story from line {}:\n  expected {was}\n  happened {is}\nUPDATE_GOLDEN=1 writes it all",
            path.display(),
            number + 1
        );
    }
}

macro_rules! golden {
    ($($name:ident)*) => { $(#[test] fn $name() { plays(stringify!($name)); })* };
}

golden! {
    leader_killed_in_a_deploy
    worker_cut_off_and_back
    leader_cut_off
    follower_with_a_full_disk
    update_across_failover
    power_cut_of_everything
    one_that_never_runs_twice
    a_worker_takes_over
    a_manager_taken_out_while_cut_off
}
