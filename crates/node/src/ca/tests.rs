use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use skep_model::{ClusterId, NodeId};

use super::*;

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
    files.save(&root.cert_pem, &signed.cert_pem, &key.pem()).unwrap();
    assert_eq!(files.load().unwrap().unwrap(), (root.cert_pem.clone(), signed.cert_pem, key.pem()));
    let mode = std::fs::metadata(directory.path().join("certificates/swarm-node.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(files.log_key().unwrap(), files.log_key().unwrap());
}
