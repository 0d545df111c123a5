//! Types of the catalogue.

use std::collections::HashMap;

use serde::Serialize;

use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::money::Money;
use crate::platform::text::Text;

/// The id of a [`Course`].
pub type CourseId = Id<Course>;
/// The id of a [`Chapter`].
pub type ChapterId = Id<Chapter>;

/// A course as the shop shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Course {
    /// Its id.
    pub id: CourseId,
    /// Its title.
    #[sqlx(try_from = "Text")]
    pub title: String,
    /// What it is about.
    #[sqlx(try_from = "Text")]
    pub summary: String,
    /// Its picture; empty: none.
    #[sqlx(try_from = "Text")]
    pub cover_url: String,
    /// Its price, in fen.
    #[sqlx(rename = "price_fen")]
    #[serde(rename = "price_fen")]
    pub price: Money,
}

/// A course on sale or not.
#[derive(sqlx::FromRow)]
pub(super) struct AnyCourse {
    #[sqlx(flatten)]
    pub course: Course,
    pub published: bool,
}

/// A part of a course.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Chapter {
    /// Its id.
    pub id: ChapterId,
    /// Its place in the course, from 1.
    pub position: i32,
    /// Its title.
    #[sqlx(try_from = "Text")]
    pub title: String,
}

impl Chapter {
    /// A new chapter.
    pub(super) fn new(position: i32, title: &str) -> Self {
        Self { id: ChapterId::new(), position, title: title.to_owned() }
    }
}

/// A course with its chapters in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct CourseDetail {
    /// The course.
    #[serde(flatten)]
    pub course: Course,
    /// Its chapters, in order.
    pub chapters: Vec<Chapter>,
}

/// A course that a user may study.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct MyCourse {
    /// The course's id.
    pub id: CourseId,
    /// Its title.
    #[sqlx(try_from = "Text")]
    pub title: String,
    /// Its picture; empty: none.
    #[sqlx(try_from = "Text")]
    pub cover_url: String,
    /// How many of its chapters the user was given.
    pub chapter_count: i64,
    /// The order that gave it (the first one, if several did).
    #[schema(value_type = String, pattern = "^[0-9a-f]{32}$")]
    pub order_no: Id<Giver>,
    /// When it was given.
    pub granted_at: At,
}

/// What gave a course: an order. The catalogue knows no more of it than its id.
#[derive(Debug)]
pub struct Giver;

/// What an order needs to know of a course on sale.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct CourseForSale {
    /// Its id.
    pub id: CourseId,
    /// Its title.
    #[sqlx(try_from = "Text")]
    pub title: String,
    /// Its price.
    #[sqlx(rename = "price_fen")]
    pub price: Money,
}

/// A course to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCourse {
    /// Its id.
    pub id: CourseId,
    /// Its title, 1..200 characters.
    pub title: String,
    /// What it is about, up to 2000 characters.
    pub summary: String,
    /// Its price.
    pub price: Money,
    /// Whether it is on sale.
    pub published: bool,
    /// The titles of its chapters, in order.
    pub chapters: Vec<String>,
}

impl NewCourse {
    /// Whether a course that is there is this one.
    pub(super) fn is(&self, there: &CourseDetail, published: bool) -> bool {
        let course = &there.course;
        let same = (course.id, &course.title, &course.summary, course.price, published)
            == (self.id, &self.title, &self.summary, self.price, self.published);
        same && there.chapters.iter().map(|chapter| &chapter.title).eq(&self.chapters)
    }
}

/// The chapters of each course.
pub(super) fn chapters_by_course(chapters: Vec<(CourseId, ChapterId)>) -> HashMap<CourseId, Vec<ChapterId>> {
    let mut by_course: HashMap<CourseId, Vec<ChapterId>> = HashMap::new();
    for (course, chapter) in chapters {
        by_course.entry(course).or_default().push(chapter);
    }
    by_course
}
