//! Shapes that the API's description has to be told of, because no type of Rust's says them.

use utoipa::openapi::schema::{AdditionalProperties, Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{KnownFormat, RefOr, Schema, SchemaFormat};

/// An object of whatever members, where a handler has JSON as it is. Without a word of its members, generators of
/// clients take an object for one that has none.
#[derive(Debug)]
pub struct AnyObject;

impl utoipa::PartialSchema for AnyObject {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .additional_properties(Some(AdditionalProperties::FreeForm(true)))
            .description(Some("An object of whatever members."))
            .into()
    }
}
impl utoipa::ToSchema for AnyObject {}

/// Any JSON value, where nobody knows more of it.
#[derive(Debug)]
pub struct AnyValue;

impl utoipa::PartialSchema for AnyValue {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some("Any JSON value.")).into()
    }
}
impl utoipa::ToSchema for AnyValue {}

/// One of these numbers.
pub fn numbers(values: &[i32], text: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int32)))
        .enum_values(Some(values.iter().copied()))
        .description(Some(text))
        .build()
}
