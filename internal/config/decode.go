package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// places says in which line each value of the file is, by path.
type places map[string]int

func (p places) has(format string, args ...any) bool {
	_, there := p[fmt.Sprintf(format, args...)]
	return there
}

// line is where a value is, or where the nearest thing around it is: something
// that is missing has no line of its own.
func (p places) line(path string) int {
	for ; path != ""; path = around(path) {
		if line, there := p[path]; there {
			return line
		}
	}
	return max(p[""], 1)
}

// around goes from the path of a value to that of what it is in.
func around(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

// brokenPaths are those of values that could not be read.
type brokenPaths map[string]bool

// at says whether a value, or something around it, could not be read.
func (b brokenPaths) at(path string) bool {
	for ; path != ""; path = around(path) {
		if b[path] {
			return true
		}
	}
	return b[""]
}

// decoder reads YAML nodes into the types of this package: structs, slices,
// text, truth values, whole numbers, durations. The YAML library's own decoder is strict too,
// but tells neither the path of a fault nor the line of a value that does not
// pass a later check, and takes 1.9 for a whole number.
type decoder struct {
	places places
	broken brokenPaths
	faults []fault
}

func (d *decoder) note(line int, path, format string, args ...any) {
	d.faults = append(d.faults, fault{line: line, path: path, text: fmt.Sprintf(format, args...)})
}

// reject notes a value that cannot be read at all.
func (d *decoder) reject(node *yaml.Node, path, format string, args ...any) {
	d.broken[path] = true
	d.note(node.Line, path, format, args...)
}

func (d *decoder) decode(node *yaml.Node, path string, into reflect.Value) {
	switch {
	case node.Kind == yaml.AliasNode || node.Anchor != "":
		d.reject(node, path, "anchors and aliases are not supported: write the value out")
		return
	case node.ShortTag() == "!!null":
		return // as if it were not there
	}
	d.places[path] = node.Line
	text, isText := into.Addr().Interface().(encoding.TextUnmarshaler)
	switch {
	case isText:
		d.scalar(node, path, func(value string) error { return text.UnmarshalText([]byte(value)) })
	case into.Type() == reflect.TypeFor[time.Duration]():
		d.scalar(node, path, func(value string) error { return setDuration(into, value) })
	case into.Kind() == reflect.Int:
		d.scalar(node, path, func(value string) error { return setInt(into, value) })
	case into.Kind() == reflect.Bool:
		d.scalar(node, path, func(value string) error { return setBool(into, value) })
	case into.Kind() == reflect.Struct:
		d.structure(node, path, into)
	case into.Kind() == reflect.Slice:
		d.list(node, path, into)
	default: // text, as written: a name may look like a number
		d.scalar(node, path, func(value string) error { into.SetString(value); return nil })
	}
}

func setDuration(into reflect.Value, value string) error {
	duration, err := time.ParseDuration(value)
	if err != nil {
		return fmt.Errorf(`want a duration such as "50ms" or "15s", not %q`, value)
	}
	into.SetInt(int64(duration))
	return nil
}

func setInt(into reflect.Value, value string) error {
	number, err := strconv.Atoi(value)
	if err != nil {
		return fmt.Errorf("want a whole number in decimal digits, not %q", value)
	}
	into.SetInt(int64(number))
	return nil
}

func setBool(into reflect.Value, value string) error {
	if value != "true" && value != "false" {
		return fmt.Errorf("want true or false, not %q", value)
	}
	into.SetBool(value == "true")
	return nil
}

func (d *decoder) scalar(node *yaml.Node, path string, set func(value string) error) {
	if node.Kind != yaml.ScalarNode {
		d.reject(node, path, "want a single value, not %s", kindOf(node))
		return
	}
	if err := set(node.Value); err != nil {
		d.reject(node, path, "%v", err)
	}
}

func (d *decoder) list(node *yaml.Node, path string, into reflect.Value) {
	if node.Kind != yaml.SequenceNode {
		d.reject(node, path, "want a list, not %s", kindOf(node))
		return
	}
	into.Set(reflect.MakeSlice(into.Type(), len(node.Content), len(node.Content)))
	for i, item := range node.Content {
		itemPath := fmt.Sprintf("%s[%d]", path, i)
		if item.ShortTag() == "!!null" {
			d.reject(item, itemPath, "an item without a value")
			continue
		}
		d.decode(item, itemPath, into.Index(i))
	}
}

func (d *decoder) structure(node *yaml.Node, path string, into reflect.Value) {
	if node.Kind != yaml.MappingNode {
		d.reject(node, path, "want fields, not %s", kindOf(node))
		return
	}
	first := make(map[string]int)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		field, known := fieldNamed(into, key)
		keyPath := strings.TrimPrefix(path+"."+key.Value, ".")
		switch line, again := first[key.Value]; {
		case !known:
			d.note(key.Line, path, "unknown field %q; known here: %s", key.Value, strings.Join(fieldNames(into.Type()), ", "))
		case again:
			d.note(key.Line, keyPath, "given a second time, first in line %d", line)
		default:
			first[key.Value] = key.Line
			d.decode(value, keyPath, field)
		}
	}
}

func fieldNamed(structure reflect.Value, key *yaml.Node) (reflect.Value, bool) {
	for i, name := range fieldNames(structure.Type()) {
		if key.Kind == yaml.ScalarNode && name == key.Value {
			return structure.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// fieldNames lists the fields of a type as the file has them, in order.
func fieldNames(structure reflect.Type) []string {
	names := make([]string, structure.NumField())
	for i := range names {
		names[i] = structure.Field(i).Tag.Get("yaml")
	}
	return names
}

func kindOf(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "fields"
	case yaml.SequenceNode:
		return "a list"
	default:
		return strconv.Quote(node.Value)
	}
}
