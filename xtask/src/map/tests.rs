//! The map of small houses, and of the house that the arrows allow.

use super::layout::{BOX, layout, reduced};
use super::*;

/// A graph with every arrow that is allowed.
fn whole_house() -> Graph {
    let edges = ROOMS.iter().flat_map(|room| room.may_import().map(|other| (room.name, other)));
    Graph::from(&edges.collect::<Vec<_>>())
}

#[test]
fn the_text_counts_imports_and_names_a_circle() {
    let graph = Graph::from(&[("session", "io"), ("io", "tls"), ("session", "io"), ("session", "tls")]);
    assert_eq!(
        text(&graph),
        "Room, and how many names it imports from each other room:\n\n\
         session  io 2, tls 1\n\
         io       tls 1\n\
         tls      nothing\n\
         \n3 rooms, 3 arrows, no circle\n"
    );
    let graph = Graph::from(&[("session", "io"), ("io", "tls"), ("tls", "session"), ("quic", "tls")]);
    let text = text(&graph);
    assert!(text.ends_with("4 rooms, 4 arrows, a circle: io -> tls -> session -> io\n"), "{text}");
}

#[test]
fn an_arrow_that_a_longer_way_shows_is_left_out() {
    assert_eq!(reduced(&[(0, 1), (1, 2), (0, 2), (0, 3)]), [(0, 1), (1, 2), (0, 3)]);
}

#[test]
fn arrows_lead_down_and_boxes_stand_apart() {
    let graph = whole_house();
    let rooms = in_order(&graph);
    let place = |name: &String| rooms.iter().position(|room| room == name).unwrap();
    let arrows: Vec<_> = graph.edges.keys().map(|(from, to)| (place(from), place(to))).collect();
    let arrows = reduced(&arrows);
    let layout = layout(rooms.len(), &arrows);
    for (way, (from, to)) in layout.arrows.iter().zip(&arrows) {
        let at = |end: Option<&(usize, usize)>| end.and_then(|(row, node)| layout.rows[*row][*node].room);
        assert_eq!((at(way.first()), at(way.last())), (Some(*from), Some(*to)));
        assert!(way.windows(2).all(|step| step[1].0 == step[0].0 + 1), "{way:?}");
    }
    for row in &layout.rows {
        let boxes: Vec<f64> = row.iter().filter(|node| node.room.is_some()).map(|node| node.x).collect();
        assert!(boxes.windows(2).all(|pair| pair[1] - pair[0] > BOX), "{row:?}");
    }
}

#[test]
fn the_picture_shows_each_room_once_and_what_points_up_in_red() {
    let picture = svg::draw(&whole_house());
    for room in ROOMS.iter().filter(|room| room.name != "demo") {
        assert_eq!(picture.matches(&format!(">{}</text>", room.name)).count(), 1, "{}", room.name);
    }
    assert!(!picture.contains("class=\"up\""), "no arrow points up");
    let picture = svg::draw(&Graph::from(&[("session", "io"), ("io", "session")]));
    assert_eq!(picture.matches("class=\"up\"").count(), 1);
    assert_eq!(picture.matches("class=\"arrow\"").count(), 1);
}
