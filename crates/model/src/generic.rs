//! Generic resources: what a node's daemon says it has beside CPU and memory (`--node-generic-resource GPU=UUID1`,
//! `SSD=3`), what a service reserves of it, and which of it a task was given. A kind is either named pieces or a number.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GenericResource {
    Named { kind: String, value: String },
    Discrete { kind: String, value: i64 },
}

impl GenericResource {
    pub fn kind(&self) -> &str {
        match self {
            Self::Named { kind, .. } | Self::Discrete { kind, .. } => kind,
        }
    }
}

/// What a node has, or what is left of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenericStock(BTreeMap<String, Kind>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Named(BTreeSet<String>),
    Discrete(i64),
}

impl GenericStock {
    pub fn of(resources: &[GenericResource]) -> Self {
        let mut stock = Self::default();
        stock.give_back(resources);
        stock
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn give_back(&mut self, resources: &[GenericResource]) {
        for resource in resources {
            match resource {
                GenericResource::Named { kind, value } => {
                    match self.0.entry(kind.clone()).or_insert_with(|| Kind::Named(BTreeSet::new())) {
                        Kind::Named(names) => _ = names.insert(value.clone()),
                        Kind::Discrete(_) => {}
                    }
                }
                GenericResource::Discrete { kind, value } => {
                    match self.0.entry(kind.clone()).or_insert(Kind::Discrete(0)) {
                        Kind::Discrete(count) => *count = count.saturating_add(*value),
                        Kind::Named(_) => {}
                    }
                }
            }
        }
    }

    /// Pieces that fill the reservations, or `None` if there are too few. Nothing is taken yet.
    pub fn choose(&self, reservations: &[GenericResource]) -> Option<Vec<GenericResource>> {
        let mut chosen = Vec::new();
        for (kind, wanted) in wanted(reservations) {
            match self.0.get(kind)? {
                Kind::Discrete(count) if *count >= wanted => {
                    chosen.push(GenericResource::Discrete { kind: kind.to_owned(), value: wanted });
                }
                Kind::Named(names) if i64::try_from(names.len()).is_ok_and(|have| have >= wanted) => {
                    let first = names.iter().take(usize::try_from(wanted).unwrap_or(usize::MAX));
                    chosen.extend(
                        first.map(|value| GenericResource::Named { kind: kind.to_owned(), value: value.clone() }),
                    );
                }
                Kind::Discrete(_) | Kind::Named(_) => return None,
            }
        }
        Some(chosen)
    }

    /// Whether each of these pieces is here; each that is, is taken.
    pub fn take(&mut self, pieces: &[GenericResource]) -> bool {
        let mut all = true;
        for piece in pieces {
            all &= match (piece, self.0.get_mut(piece.kind())) {
                (GenericResource::Named { value, .. }, Some(Kind::Named(names))) => names.remove(value),
                (GenericResource::Discrete { value, .. }, Some(Kind::Discrete(count))) => {
                    let enough = *count >= *value;
                    *count -= *value;
                    enough
                }
                _ => false,
            };
        }
        all
    }
}

/// How much of each kind; a reservation that names a piece asks for one.
fn wanted(reservations: &[GenericResource]) -> BTreeMap<&str, i64> {
    let mut out = BTreeMap::new();
    for reservation in reservations {
        let count = match reservation {
            GenericResource::Named { .. } => 1,
            GenericResource::Discrete { value, .. } => (*value).max(0),
        };
        *out.entry(reservation.kind()).or_insert(0) += count;
    }
    out
}

/// `DOCKER_RESOURCE_<KIND>=…` for what a task was given.
pub fn environment(given: &[GenericResource]) -> Vec<String> {
    let mut by_kind: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for resource in given {
        let value = match resource {
            GenericResource::Named { value, .. } => value.clone(),
            GenericResource::Discrete { value, .. } => value.to_string(),
        };
        by_kind.entry(resource.kind()).or_default().push(value);
    }
    by_kind
        .iter()
        .map(|(kind, values)| format!("DOCKER_RESOURCE_{}={}", kind.to_uppercase(), values.join(",")))
        .collect()
}

/// The daemon's flags and `node-generic-resources`: `KIND=NAME`, or `KIND=NUMBER` once a kind (swarmkit
/// `genericresource.Parse`). Several may be in one, with commas between them.
pub fn parse<S: AsRef<str>>(terms: &[S]) -> Result<Vec<GenericResource>, String> {
    let failed = |text: String| Err(format!("could not parse GenericResource: {text}"));
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for term in terms.iter().flat_map(|t| t.as_ref().split(',')) {
        match term.split('=').map(str::trim).collect::<Vec<_>>().as_slice() {
            [kind, value] if !kind.is_empty() => kinds.entry((*kind).to_owned()).or_default().push((*value).to_owned()),
            _ => return failed(format!("incorrect term {term}, missing '=' or malformed expression")),
        }
    }
    let mut out = Vec::new();
    for (kind, values) in kinds {
        let numbers = values.iter().filter(|v| v.parse::<i64>().is_ok()).count();
        match (values.as_slice(), numbers) {
            ([one], 1) => match one.parse() {
                Ok(value @ 0..) => out.push(GenericResource::Discrete { kind, value }),
                _ => return failed(format!("cannot ask for negative resource {kind}")),
            },
            (_, 0) => {
                out.extend(values.iter().map(|v| GenericResource::Named { kind: kind.clone(), value: v.clone() }))
            }
            _ => return failed(format!("malformed expression '{kind}=[{}]'", values.join(" "))),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(value: &str) -> GenericResource {
        GenericResource::Named { kind: "GPU".into(), value: value.into() }
    }

    fn discrete(kind: &str, value: i64) -> GenericResource {
        GenericResource::Discrete { kind: kind.into(), value }
    }

    #[test]
    fn a_kind_is_names_or_one_number() {
        assert_eq!(parse(&["GPU=b", "SSD=3", "GPU=a"]), Ok(vec![named("b"), named("a"), discrete("SSD", 3)]));
        assert_eq!(parse(&["GPU=a,SSD=0"]), Ok(vec![named("a"), discrete("SSD", 0)]));
        for (bad, said) in [
            ("GPU", "incorrect term GPU, missing '=' or malformed expression"),
            ("GPU=a=b", "incorrect term GPU=a=b, missing '=' or malformed expression"),
            ("GPU=a,GPU=1", "malformed expression 'GPU=[a 1]'"),
            ("SSD=-1", "cannot ask for negative resource SSD"),
        ] {
            assert_eq!(parse(&[bad]), Err(format!("could not parse GenericResource: {said}")));
        }
    }

    #[test]
    fn pieces_are_given_once() {
        let mut stock = GenericStock::of(&[named("a"), named("b"), discrete("SSD", 3)]);
        let asked = [discrete("GPU", 1), discrete("SSD", 2)];
        let given = stock.choose(&asked).unwrap();
        assert_eq!(given, [named("a"), discrete("SSD", 2)]);
        assert!(stock.take(&given));
        assert_eq!(stock.choose(&asked), None);
        assert_eq!(stock.choose(&[discrete("GPU", 1)]), Some(vec![named("b")]));
        assert_eq!(stock.choose(&[discrete("GPU", 2)]), None);
        assert_eq!(stock.choose(&[discrete("TPU", 1)]), None);
        assert!(!stock.take(&[named("a")]));
    }

    #[test]
    fn the_container_is_told_what_it_has() {
        let given = [named("a"), named("b"), discrete("ssd", 2)];
        assert_eq!(environment(&given), ["DOCKER_RESOURCE_GPU=a,b", "DOCKER_RESOURCE_SSD=2"]);
    }
}
