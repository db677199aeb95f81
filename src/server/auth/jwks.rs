//! Which keys of a JSON Web Key Set are good enough to trust a signature to (RFC 7517, 7518, 8037).

use anyhow::{Context, bail, ensure};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
    VerificationAlgorithm,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

/// Members that only a private key or a shared secret has.
const SECRET: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Bits of an RSA modulus: fewer can be factored, more make each signature a burden.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Longest RSA exponent, bytes; 65537 has three.
const EXPONENT_BYTES: usize = 8;

/// The algorithms that `key` can sign with; `None` for a key that is not for signatures.
///
/// # Errors
/// The member at fault, for a key that nothing should be trusted to.
pub(super) fn algorithms(key: &Map<String, Value>) -> anyhow::Result<Option<Vec<Algorithm>>> {
    if let Some(member) = SECRET.iter().find(|member| key.contains_key(**member)) {
        // In a file of public keys it would let whoever reads the file sign.
        bail!("{member}: is part of a private key or a shared secret, and not of a public key");
    }
    let kind = text(key, "kty")?;
    ensure!(
        kind != "oct",
        "kty: is a shared secret, and not a public key"
    );
    match key.get("use") {
        None => {}
        Some(Value::String(usage)) if usage == "sig" => {}
        Some(Value::String(_)) => return Ok(None),
        Some(_) => bail!("use: is not a string"),
    }
    if let Some(operations) = key.get("key_ops") {
        let operations = operations.as_array().context("key_ops: is not a list")?;
        ensure!(
            operations.iter().any(|operation| operation == "verify"),
            "key_ops: does not hold \"verify\""
        );
    }
    let able = match kind {
        "RSA" => rsa(key)?,
        "EC" => curve(key)?,
        "OKP" => edwards(key)?,
        other => bail!("kty: is {:?}, but must be RSA, EC or OKP", shown(other)),
    };
    let Some(named) = key.get("alg") else {
        return Ok(Some(able.to_vec()));
    };
    let named = named.as_str().context("alg: is not a string")?;
    match able.iter().find(|able| format!("{able:?}") == named) {
        Some(algorithm) => Ok(Some(vec![*algorithm])),
        None => bail!("alg: is {:?}, but this key is for {able:?}", shown(named)),
    }
}

fn rsa(key: &Map<String, Value>) -> anyhow::Result<&'static [Algorithm]> {
    let modulus = number(key, "n")?;
    let bits = bits(&modulus);
    ensure!(
        RSA_BITS.contains(&bits),
        "n: has {bits} bits, but must have {} to {}",
        RSA_BITS.start(),
        RSA_BITS.end()
    );
    ensure!(odd(&modulus), "n: is even, and so no RSA modulus");
    let exponent = number(key, "e")?;
    ensure!(
        odd(&exponent) && self::bits(&exponent) > 1 && exponent.len() <= EXPONENT_BYTES,
        "e: must be an odd number from 3 to 64 bits"
    );
    Ok(&[
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ])
}

fn curve(key: &Map<String, Value>) -> anyhow::Result<&'static [Algorithm]> {
    let (side, verifier, able): (_, &'static dyn VerificationAlgorithm, &'static [Algorithm]) =
        match text(key, "crv")? {
            "P-256" => (32, &ECDSA_P256_SHA256_FIXED, &[Algorithm::ES256]),
            "P-384" => (48, &ECDSA_P384_SHA384_FIXED, &[Algorithm::ES384]),
            other => bail!("crv: is {:?}, but must be P-256 or P-384", shown(other)),
        };
    // SEC 1, 2.3.3: an uncompressed point.
    let mut point = vec![4];
    for member in ["x", "y"] {
        let coordinate = bytes(key, member)?;
        ensure!(
            coordinate.len() == side,
            "{member}: has {} bytes, but must have {side}",
            coordinate.len()
        );
        point.extend(coordinate);
    }
    let parsed = ParsedPublicKey::new(verifier, point);
    ensure!(parsed.is_ok(), "x: and y are no point of the curve");
    Ok(able)
}

fn edwards(key: &Map<String, Value>) -> anyhow::Result<&'static [Algorithm]> {
    let name = text(key, "crv")?;
    ensure!(
        name == "Ed25519",
        "crv: is {:?}, but must be Ed25519",
        shown(name)
    );
    let parsed = ParsedPublicKey::new(&ED25519, bytes(key, "x")?);
    ensure!(parsed.is_ok(), "x: is no Ed25519 public key");
    Ok(&[Algorithm::EdDSA])
}

fn text<'a>(key: &'a Map<String, Value>, member: &str) -> anyhow::Result<&'a str> {
    match key.get(member) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => bail!("{member}: is not a string"),
        None => bail!("{member}: is missing"),
    }
}

fn bytes(key: &Map<String, Value>, member: &str) -> anyhow::Result<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD
        .decode(text(key, member)?)
        .with_context(|| format!("{member}: is not base64url without padding"))
}

/// A big-endian number without leading zeros.
fn number(key: &Map<String, Value>, member: &str) -> anyhow::Result<Vec<u8>> {
    let bytes = bytes(key, member)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(bytes[zeros..].to_vec())
}

fn bits(number: &[u8]) -> usize {
    number
        .first()
        .map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

fn odd(number: &[u8]) -> bool {
    number.last().is_some_and(|byte| byte % 2 == 1)
}

fn shown(text: &str) -> String {
    text.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &Value) -> Result<Option<Vec<Algorithm>>, String> {
        algorithms(key.as_object().unwrap()).map_err(|error| format!("{error:#}"))
    }

    fn encoded(bytes: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// An RSA key of `bits` bits; whether it factors does not matter here.
    fn rsa_key(bits: usize, exponent: &[u8]) -> Value {
        let mut modulus = vec![0xff; bits / 8];
        modulus[0] = 0x80;
        serde_json::json!({"kty": "RSA", "n": encoded(&modulus), "e": encoded(exponent)})
    }

    /// The example key of RFC 7517, appendix A.1.
    fn p256() -> Value {
        serde_json::json!({
            "kty": "EC", "crv": "P-256",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        })
    }

    fn with(mut key: Value, member: &str, value: Value) -> Value {
        key[member] = value;
        key
    }

    #[test]
    fn good_keys_are_good_for_their_own_algorithms() {
        assert_eq!(check(&p256()), Ok(Some(vec![Algorithm::ES256])));
        let one = with(rsa_key(2048, &[1, 0, 1]), "alg", "PS384".into());
        assert_eq!(check(&one), Ok(Some(vec![Algorithm::PS384])));
        assert_eq!(
            check(&rsa_key(4096, &[3])).map(|able| able.map(|a| a.len())),
            Ok(Some(6))
        );
        // The public key of RFC 8037, appendix A.2.
        let ed = serde_json::json!({
            "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
            "key_ops": ["verify"], "use": "sig",
        });
        assert_eq!(check(&ed), Ok(Some(vec![Algorithm::EdDSA])));
        assert_eq!(check(&with(p256(), "use", "enc".into())), Ok(None));
    }

    #[test]
    fn weak_and_odd_keys_are_named_by_their_member() {
        let cases = [
            (rsa_key(1024, &[1, 0, 1]), "n: has 1024 bits"),
            (rsa_key(16384, &[1, 0, 1]), "n: has 16384 bits"),
            (rsa_key(2048, &[1]), "e:"),
            (rsa_key(2048, &[4]), "e:"),
            (rsa_key(2048, &[0]), "e:"),
            (rsa_key(2048, &[1; 9]), "e:"),
            (with(rsa_key(2048, &[3]), "d", "AQ".into()), "d: is part"),
            (with(p256(), "d", "AQ".into()), "d: is part"),
            (serde_json::json!({"kty": "oct"}), "kty:"),
            (serde_json::json!({"kty": "oct", "k": "AQ"}), "k: is part"),
            (serde_json::json!({"kty": "EC2"}), "kty:"),
            (serde_json::json!({}), "kty: is missing"),
            (with(p256(), "crv", "secp256k1".into()), "crv:"),
            (with(p256(), "crv", "P-521".into()), "crv:"),
            (with(p256(), "crv", "P-384".into()), "x: has 32 bytes"),
            (with(p256(), "y", encoded(&[7; 32]).into()), "no point"),
            (
                with(p256(), "key_ops", serde_json::json!(["sign"])),
                "key_ops:",
            ),
            (with(p256(), "key_ops", serde_json::json!([])), "key_ops:"),
            (with(p256(), "alg", "ES384".into()), "alg:"),
            (with(p256(), "alg", "HS256".into()), "alg:"),
            (with(p256(), "alg", "none".into()), "alg:"),
        ];
        for (key, named) in cases {
            let error = check(&key).unwrap_err();
            assert!(error.contains(named), "no {named:?} in {error:?} of {key}");
        }
    }
}
