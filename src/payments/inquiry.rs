//! Asking a gateway what became of a payment.

use super::gateway::{self, PaymentOutcome};
use super::model::Payment;
use super::{close, settle};
use crate::app::App;
use crate::error::Result;

/// Asks the gateway about a started payment and acts on the answer.
pub(super) async fn ask(app: &App, payment: &Payment) -> Result<()> {
    match gateway::query(app, payment).await? {
        PaymentOutcome::Paid(message, body) => settle::settle(app, payment.gateway, &message, &body).await.map(|_| ()),
        PaymentOutcome::Waiting => Ok(()),
        PaymentOutcome::Over => close::close_payment(app, payment.id).await,
    }
}
