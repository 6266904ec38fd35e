use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use skep_model::{ClusterId, NodeId};

use super::*;
use crate::error::NodeError;

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_token_pins_the_root_and_has_swarmkits_form() {
    let root = Signer::create_root().unwrap();
    let tokens = new_tokens(&root.digest).unwrap();
    assert_eq!(tokens.worker.len(), "SWMTKN-1-".len() + 50 + 1 + 25);
    assert_eq!(JoinToken::parse(&tokens.worker).unwrap().root_digest, root.digest);
    assert_eq!(JoinToken::role_granted(&tokens.worker, &tokens), Some(Role::Worker));
    assert_eq!(JoinToken::role_granted(&tokens.manager, &tokens), Some(Role::Manager));
    let other = new_tokens(&root.digest).unwrap();
    assert_eq!(JoinToken::role_granted(&other.worker, &tokens), None);
}

#[test]
fn what_is_no_token_is_refused() {
    let root = Signer::create_root().unwrap();
    let good = new_tokens(&root.digest).unwrap().worker;
    let z = format!("SWMTKN-1-{}-{}", "z".repeat(50), "0".repeat(25)); // more than 256 bits
    for bad in
        ["", "a-b-c-d", &good[1..], &good[..good.len() - 1], &good.to_uppercase(), &good.replace("-1-", "-3-"), &z]
    {
        assert!(JoinToken::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_signer_decides_who_the_bearer_is() {
    let root = Signer::create_root().unwrap();
    let signer = Signer::of(&root).unwrap();
    // A request that claims to be a manager of another swarm.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["swarm-manager".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "someone else");
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "swarm-manager");
    let request = params.serialize_request(&key).unwrap().pem().unwrap();

    let (node, cluster) = (NodeId::from_bits(7), ClusterId::from_bits(9));
    let signed = signer.sign(&request, &node, Role::Worker, &cluster, Duration::from_secs(7_776_000)).unwrap();
    let identity = Identity::from_der(&der(&signed.cert_pem)).unwrap();
    assert_eq!((identity.node_id, identity.role, identity.cluster_id), (node, Role::Worker, cluster));
    assert_eq!(identity.not_after - identity.not_before, 7_776_000 + 3_600);
    let (_, parsed) = x509_parser::parse_x509_certificate(&der(&signed.cert_pem))
        .map(|(r, c)| (r.len(), c.subject_alternative_name().unwrap().map(|s| format!("{:?}", s.value))))
        .unwrap();
    assert!(!parsed.unwrap().contains("swarm-manager"));
}

#[test]
fn files_come_back_as_they_were_and_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let files = CertificateFiles::new(directory.path());
    assert!(files.load().unwrap().is_none());
    let key = NodeKey::generate().unwrap();
    let root = Signer::create_root().unwrap();
    let signed = Signer::of(&root)
        .unwrap()
        .sign(
            &key.request_pem().unwrap(),
            &NodeId::from_bits(1),
            Role::Manager,
            &ClusterId::from_bits(2),
            Duration::from_secs(60),
        )
        .unwrap();
    files.save(&root.cert_pem, &signed.cert_pem, &key.pem(), Role::Manager).unwrap();
    assert_eq!(files.load().unwrap().unwrap(), (root.cert_pem.clone(), signed.cert_pem, key.pem()));
    let mode = std::fs::metadata(directory.path().join("certificates/swarm-node.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(files.log_key().unwrap(), files.log_key().unwrap());
}

/// A manager's files, with a stand-in for the certificate.
fn keys(directory: &std::path::Path) -> (CertificateFiles, String, [u8; 32]) {
    let files = CertificateFiles::new(directory);
    let key = NodeKey::generate().unwrap().pem();
    files.save("root", "-----BEGIN CERTIFICATE-----\n", &key, Role::Manager).unwrap();
    let log_key = files.log_key().unwrap();
    (files, key, log_key)
}

fn holds(directory: &std::path::Path, needle: &[u8]) -> bool {
    std::fs::read_dir(directory.join("certificates"))
        .unwrap()
        .any(|file| std::fs::read(file.unwrap().path()).unwrap().windows(needle.len()).any(|window| window == needle))
}

#[test]
fn locked_keys_are_on_disk_for_the_unlock_key_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (files, key, log_key) = keys(directory.path());
    let (first, second) = (new_unlock_key(), new_unlock_key());
    assert!(first.0.starts_with("SWMKEY-1-") && first.0.len() == "SWMKEY-1-".len() + 43, "{}", first.0);
    files.follow(Some(&first), 5).unwrap();
    assert!(!holds(directory.path(), key.lines().nth(1).unwrap().as_bytes()) && !holds(directory.path(), &log_key));
    assert!(!holds(directory.path(), first.0.as_bytes()));

    let opens = |with: &skep_model::cluster::UnlockKey| {
        let again = CertificateFiles::new(directory.path());
        assert!(matches!(again.load(), Err(NodeError::Locked)) && matches!(again.log_key(), Err(NodeError::Locked)));
        again.unlock(&parse_unlock_key(&with.0).unwrap())?;
        assert_eq!((again.load().unwrap().unwrap().2, again.log_key().unwrap()), (key.clone(), log_key));
        Ok::<_, NodeError>(again)
    };
    assert!(matches!(opens(&second), Err(NodeError::InvalidUnlockKey)));
    let again = opens(&first).unwrap();
    // An older cluster object, seen while the log is replayed, moves nothing; a newer one does.
    again.follow(Some(&second), 4).unwrap();
    opens(&first).unwrap();
    again.follow(Some(&second), 6).unwrap();
    assert!(matches!(opens(&first), Err(NodeError::InvalidUnlockKey)));
    let again = opens(&second).unwrap();
    // What is saved while locked is locked, too; a worker's key never is.
    again.save("root", "-----BEGIN CERTIFICATE-----\n", &key, Role::Manager).unwrap();
    opens(&second).unwrap();
    again.follow(None, 7).unwrap();
    let clear = CertificateFiles::new(directory.path());
    assert_eq!((clear.load().unwrap().unwrap().2, clear.log_key().unwrap()), (key.clone(), log_key));
    clear.follow(Some(&second), 6).unwrap();
    assert!(clear.load().is_ok(), "an older object locked it");
}

/// Between any two writes the daemon may be killed: what is on disk must open with the old or the new key, or be clear.
#[test]
fn no_crash_leaves_keys_that_do_not_open() {
    let at = |steps: &dyn Fn(&std::path::Path, &CertificateFiles, &CertificateFiles)| {
        let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (old, key, log_key) = keys(before.path());
        let unlock = new_unlock_key();
        std::fs::create_dir(after.path().join("certificates")).unwrap();
        for name in ["swarm-root-ca.crt", "swarm-node.key", "raft.key"] {
            let path = |of: &tempfile::TempDir| of.path().join("certificates").join(name);
            std::fs::copy(path(&before), path(&after)).unwrap();
        }
        let new = CertificateFiles::new(after.path());
        new.follow(Some(&unlock), 1).unwrap();
        steps(before.path(), &old, &new);
        // `before` now holds some of the files of `after`, in the order they are written.
        let start = CertificateFiles::new(before.path());
        let readable = |files: &CertificateFiles| Ok::<_, NodeError>((files.load()?.unwrap().2, files.log_key()?));
        let found = readable(&start).or_else(|_| {
            start.unlock(&parse_unlock_key(&unlock.0).unwrap())?;
            readable(&start)
        });
        assert_eq!(found.unwrap(), (key.clone(), log_key));
        // And the next start finishes it.
        start.follow(Some(&unlock), 1).unwrap();
        let again = CertificateFiles::new(before.path());
        assert!(matches!(again.load(), Err(NodeError::Locked)) && matches!(again.log_key(), Err(NodeError::Locked)));
        again.unlock(&parse_unlock_key(&unlock.0).unwrap()).unwrap();
        assert_eq!(readable(&again).unwrap(), (key, log_key));
    };
    let order = ["swarm-lock.json", "raft.key", "swarm-node.key"];
    for written in 0..=order.len() {
        at(&|before, _, new| {
            for name in &order[..written] {
                std::fs::copy(new.directory().join(name), before.join("certificates").join(name)).unwrap();
            }
        });
    }
}

#[test]
fn what_is_no_unlock_key_is_refused_as_such() {
    let good = new_unlock_key().0;
    for bad in ["", "SWMKEY-1", "SWMKEY-2-abc", "swmkey-1-abc", &good.replace("SWMKEY", "SWMTKN"), &format!("{good}=")]
    {
        assert!(
            matches!(parse_unlock_key(bad), Err(NodeError::BadRequest(text)) if text == "invalid key string"),
            "{bad}"
        );
    }
}
