//! What a refusal's body may have beside the members that all have, and the names of all refusals, as the API's
//! description tells them: a client is generated from that, so nothing is added to a refusal that is not named here.

use utoipa::openapi::schema::{AdditionalProperties, ArrayBuilder, ObjectBuilder, RefBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};

use super::kinds::Kind;

/// What a member holds.
enum Holds {
    /// A shape that the description has by this name. The rooms that define them are above this one.
    One(&'static str),
    /// A list of such.
    Many(&'static str),
    /// A whole number.
    Whole,
    /// Gateways, and the most that each takes.
    Limits,
}

use Holds::{Limits, Many, One, Whole};

/// Every further member: its name, what it holds, what it says and of which kinds.
const MEMBERS: &[(&str, Holds, &str)] = &[
    ("starts_at", One("At"), "`not_started`: when the sale starts."),
    (
        "course_ids",
        Many("Id"),
        "`course_unavailable`, `already_owned`, `too_many_unpaid`: the courses that it is about.",
    ),
    ("user_coupon_id", One("Id"), "`not_found`: the coupon that you have not."),
    ("expected_payable_fen", One("Money"), "`price_changed`: what the buyer was shown."),
    ("payable_fen", One("Money"), "`price_changed`: what the order costs now."),
    ("max_fen", One("Money"), "`amount_too_large`: the most that can be paid."),
    ("gateways", Limits, "`amount_too_large`: who takes how much."),
    ("max", Whole, "`too_many_unpaid`: how many orders may wait for their payment."),
    ("points_balance", Whole, "`points_unusable`: the points that you have."),
    ("points_max", Whole, "`points_unusable`: the most points that the order takes."),
    ("left_fen", One("Money"), "`refund_too_much`: what is left of what was paid."),
    ("order_status", One("OrderStatus"), "`order_state`: the order's status."),
    ("ready_at", One("At"), "`bill_not_ready`, and `not_found` of a day's report: when it is there."),
    ("waits_until", One("At"), "`difference_state`: until when the difference may still come to fit."),
];

/// Whether a refusal may have a member of this name.
pub(super) fn is_described(name: &str) -> bool {
    MEMBERS.iter().any(|(known, ..)| *known == name)
}

/// Adds the further members to the description of a refusal's body.
pub fn describe(problem: &mut RefOr<Schema>) {
    let RefOr::T(Schema::Object(problem)) = problem else { return };
    for (name, holds, text) in MEMBERS {
        problem.properties.insert((*name).to_owned(), holds.schema(text));
    }
    // A later version may have more of them.
    problem.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(true)));
}

impl Holds {
    fn schema(&self, text: &str) -> RefOr<Schema> {
        let named = |name: &str| RefBuilder::new().ref_location_from_schema_name(name);
        match self {
            Self::One(name) => RefOr::Ref(named(name).description(Some(text)).build()),
            Self::Many(name) => ArrayBuilder::new().items(named(name)).description(Some(text)).into(),
            Self::Whole => ObjectBuilder::new()
                .schema_type(Type::Integer)
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
                .description(Some(text))
                .into(),
            Self::Limits => {
                let limit = ObjectBuilder::new()
                    .property("gateway", named("Gateway"))
                    .required("gateway")
                    .property("max_fen", named("Money"))
                    .required("max_fen");
                ArrayBuilder::new().items(limit).description(Some(text)).into()
            }
        }
    }
}

/// The names of all refusals.
impl utoipa::PartialSchema for Kind {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The name of a refusal. `/docs/errors` says what each means."))
            .enum_values(Some(Self::ALL.iter().map(|kind| kind.name())))
            .into()
    }
}
impl utoipa::ToSchema for Kind {
    fn name() -> std::borrow::Cow<'static, str> {
        "ErrorName".into()
    }
}
