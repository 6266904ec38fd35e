//! JSON read as Go's `encoding/json` reads it, once for all request bodies.
//!
//! Go matches the keys of a *struct* without regard to case, and takes `null` as "leave the zero value". Keys of a *map*
//! (labels, sysctls) are data and keep their case. serde tells the two apart by how it asks for them, so this is a
//! deserialiser over a parsed value rather than a rewrite of it.

use serde::de::value::{MapDeserializer, SeqDeserializer, StringDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

use crate::ConvertError;

/// Decodes a request body. An empty body decodes as `null`, hence as the zero value where there is one.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ConvertError> {
    let value = if body.iter().all(u8::is_ascii_whitespace) {
        Value::Null
    } else {
        serde_json::from_slice(body).map_err(|e| ConvertError::Invalid(format!("invalid JSON: {e}")))?
    };
    T::deserialize(Go(value)).map_err(|e| ConvertError::Invalid(format!("invalid JSON: {e}")))
}

struct Go(Value);

impl<'de> IntoDeserializer<'de, Error> for Go {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

/// A struct's members under the names it declares; of several that differ only in case the last one wins, as in Go.
fn fold(object: Map<String, Value>, fields: &'static [&'static str]) -> impl Iterator<Item = (String, Go)> {
    let mut folded: Map<String, Value> = Map::new();
    for (key, value) in object {
        let declared =
            fields.iter().find(|f| **f == key).or_else(|| fields.iter().find(|f| f.eq_ignore_ascii_case(&key)));
        if let Some(name) = declared {
            folded.insert((*name).to_owned(), value);
        }
    }
    folded.into_iter().map(|(k, v)| (k, Go(v)))
}

macro_rules! zero_if_null {
    ($($method:ident => $visit:ident($zero:expr),)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0 {
                Value::Null => visitor.$visit($zero),
                value => value.$method(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Go {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(list) => visitor.visit_seq(SeqDeserializer::new(list.into_iter().map(Go))),
            Value::Object(object) => {
                visitor.visit_map(MapDeserializer::new(object.into_iter().map(|(k, v)| (k, Go(v)))))
            }
            value => value.deserialize_any(visitor),
        }
    }

    zero_if_null! {
        deserialize_bool => visit_bool(false),
        deserialize_i8 => visit_i64(0),
        deserialize_i16 => visit_i64(0),
        deserialize_i32 => visit_i64(0),
        deserialize_i64 => visit_i64(0),
        deserialize_u8 => visit_u64(0),
        deserialize_u16 => visit_u64(0),
        deserialize_u32 => visit_u64(0),
        deserialize_u64 => visit_u64(0),
        deserialize_f32 => visit_f64(0.0),
        deserialize_f64 => visit_f64(0.0),
        deserialize_str => visit_str(""),
        deserialize_string => visit_str(""),
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<Go>())),
            value => Go(value).deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_map(MapDeserializer::new(std::iter::empty::<(String, Go)>())),
            value => Go(value).deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_map(MapDeserializer::new(std::iter::empty::<(String, Go)>())),
            Value::Object(object) => visitor.visit_map(MapDeserializer::new(fold(object, fields))),
            value => value.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(text) => visitor.visit_enum(Word(text)),
            _ => Err(Error::custom("expected a string")),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// A unit variant named by a string: the only enums in Docker's JSON.
struct Word(String);

impl<'de> EnumAccess<'de> for Word {
    type Error = Error;
    type Variant = Self;
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        let name: StringDeserializer<Error> = self.0.clone().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word {
    type Error = Error;
    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value, Error> {
        Err(Error::custom("expected a word"))
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("expected a word"))
    }
    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(Error::custom("expected a word"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Inner {
        count: i64,
        words: Vec<String>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Outer {
        #[serde(rename = "ID")]
        id: String,
        labels: BTreeMap<String, String>,
        inner: Inner,
        maybe: Option<Inner>,
        #[serde(rename = "TTY")]
        tty: bool,
    }

    #[test]
    fn struct_keys_fold_and_map_keys_do_not() {
        let got: Outer =
            decode(br#"{"id":"x","LABELS":{"A":"1","a":"2"},"inner":{"COUNT":3,"words":["b"]},"tty":true}"#).unwrap();
        assert_eq!(got.id, "x");
        assert_eq!(got.labels.len(), 2);
        assert_eq!(got.inner, Inner { count: 3, words: vec!["b".into()] });
        assert!(got.tty);
    }

    #[test]
    fn null_is_zero_everywhere() {
        let got: Outer =
            decode(br#"{"ID":null,"Labels":null,"Inner":{"Count":null,"Words":null},"Maybe":null,"TTY":null,"New":1}"#)
                .unwrap();
        assert_eq!(got, Outer::default());
        assert_eq!(decode::<Outer>(b"").unwrap(), Outer::default());
        assert_eq!(decode::<Outer>(b"null").unwrap(), Outer::default());
    }

    #[test]
    fn what_go_refuses_is_refused() {
        assert!(decode::<Outer>(br#"{"ID":1}"#).is_err());
        assert!(decode::<Outer>(br#"{"Inner":{"Count":"3"}}"#).is_err());
        assert!(decode::<Outer>(br#"{"ID":"x"} trailing"#).is_err());
        assert!(decode::<Outer>(br#"{"#).is_err());
    }
}
