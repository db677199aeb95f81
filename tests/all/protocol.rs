//! The protocol as other languages see it: names that clash nowhere, numbers that stay numbers, one meaning a name.

use std::{collections::BTreeMap, fs, path::Path};

use frostline::proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{
    DescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// What a language or its usual imports already mean by a name: `System.Threading.Tasks.Task`, Rust's prelude, the globals of
/// JavaScript that do not stand behind a module, Objective-C's and Go's own.
const TAKEN: &[&str] = &[
    "Task",
    "Box",
    "Vec",
    "Option",
    "Result",
    "String",
    "Some",
    "None",
    "Ok",
    "Err",
    "Error",
    "Object",
    "Type",
    "Date",
    "Map",
    "Set",
    "Promise",
    "Symbol",
    "Function",
    "Array",
    "Number",
    "Boolean",
    "Proxy",
    "Reflect",
    "Size",
    "Action",
    "Func",
    "Exception",
    "Thread",
    "Iterator",
    "Optional",
    "Protocol",
    "Any",
    "Self",
    "Data",
    "Selector",
    "Class",
    "Record",
    "Enum",
];

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let ours = set.file.into_iter();
    let ours: Vec<_> = ours.filter(|f| f.package() == "frostline.v1").collect();
    assert!(ours.len() >= 3);
    ours
}

fn messages(files: &[FileDescriptorProto]) -> Vec<&DescriptorProto> {
    let mut waiting: Vec<_> = files.iter().flat_map(|file| &file.message_type).collect();
    let mut found = Vec::new();
    while let Some(message) = waiting.pop() {
        waiting.extend(&message.nested_type);
        found.push(message);
    }
    found
}

#[test]
fn every_file_says_its_package_in_every_language() {
    for file in files() {
        let (name, options) = (file.name(), file.options.clone().unwrap_or_default());
        assert_eq!(options.csharp_namespace(), "Frostline.V1", "{name}");
        assert_eq!(options.java_package(), "frostline.v1", "{name}");
        assert!(options.java_multiple_files(), "{name}");
        let stem = Path::new(name).file_stem().unwrap().to_str().unwrap();
        let outer = options.java_outer_classname().to_lowercase();
        assert_eq!(outer, format!("{stem}proto"), "{name}");
        let (path, package) = options.go_package().split_once(';').unwrap();
        assert!(path.ends_with(package), "{name}");
        assert_eq!(options.objc_class_prefix(), "FLV", "{name}");
        assert_eq!(options.php_namespace(), "Frostline\\V1", "{name}");
        assert_eq!(options.ruby_package(), "Frostline::V1", "{name}");
        assert_eq!(options.swift_prefix(), "Frostline", "{name}");
    }
}

#[test]
fn no_name_shadows_what_a_language_means_by_it() {
    let files = files();
    let enums = files.iter().flat_map(|file| &file.enum_type);
    let types = messages(&files).into_iter().map(DescriptorProto::name);
    for name in types.chain(enums.map(|one| one.name())) {
        assert!(!TAKEN.contains(&name), "{name}");
    }
    // A choice becomes a type too: `Result` in Rust.
    for message in messages(&files) {
        for choice in &message.oneof_decl {
            let name = choice.name();
            let mut letters = name.chars();
            let first = letters.next().unwrap().to_uppercase();
            let made: String = first.chain(letters).collect();
            assert!(!TAKEN.contains(&made.as_str()), "{}.{name}", message.name());
        }
    }
}

/// 64 bits are text in JSON and `bigint` in JavaScript.
#[test]
fn numbers_are_numbers_in_json_too() {
    let files = files();
    for message in messages(&files) {
        for field in &message.field {
            let wide = [
                Type::Int64,
                Type::Uint64,
                Type::Sint64,
                Type::Fixed64,
                Type::Sfixed64,
            ];
            assert!(
                !wide.contains(&field.r#type()),
                "{}.{}",
                message.name(),
                field.name()
            );
        }
    }
}

#[test]
fn a_name_means_one_thing() {
    let files = files();
    let mut meant = BTreeMap::new();
    for message in messages(&files) {
        for field in &message.field {
            let (owner, name) = (message.name(), field.name());
            let number = field.r#type() != Type::String;
            assert!(name != "label" || !number, "{owner}.{name} is a number");
            assert!(name != "class_index" || number, "{owner}.{name} is text");
            assert_ne!(name, "features", "{owner}");
            // `tensors.tensors`: a field named as its message's only list.
            if let Some(inner) = messages(&files)
                .into_iter()
                .find(|other| field.type_name().ends_with(&format!(".{}", other.name())))
            {
                let lists = |f: &&prost_types::FieldDescriptorProto| f.label() == Label::Repeated;
                let again = inner.field.iter().filter(lists).any(|f| f.name() == name);
                assert!(!again, "{owner}.{name}.{name}");
            }
            if field.label() != Label::Repeated {
                meant.entry(name.to_owned()).or_insert_with(Vec::new).push((
                    owner,
                    field.r#type(),
                    field.type_name(),
                ));
            }
        }
    }
    for name in [
        "label",
        "class_index",
        "input_size",
        "score",
        "width",
        "height",
        "layout",
        "precision",
        "resize",
    ] {
        let uses = &meant[name];
        let same = uses
            .iter()
            .all(|(_, kind, of)| (*kind, *of) == (uses[0].1, uses[0].2));
        assert!(same, "{name}: {uses:?}");
    }
}

#[test]
fn the_spelling_is_american_and_messages_need_no_optional() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/frostline/v1");
    let files = files();
    let names: Vec<_> = messages(&files)
        .into_iter()
        .map(|m| m.name().to_owned())
        .collect();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let place = format!("{}:{}", path.display(), number + 1);
            // A name that is gone keeps its spelling where it is kept free.
            if !line.trim_start().starts_with("reserved") {
                let lower = line.to_lowercase();
                for word in [
                    "licence",
                    "colour",
                    "centre",
                    "grey",
                    "normalis",
                    "analys",
                    "behaviour",
                    "labelled",
                    "optimis",
                ] {
                    let found = lower.contains(word) && !lower.contains("analysis");
                    assert!(!found, "{place}: {word}");
                }
            }
            let needless = names
                .iter()
                .any(|name| line.contains(&format!("optional {name} ")));
            assert!(!needless, "{place}: a message tells its presence by itself");
        }
    }
}
