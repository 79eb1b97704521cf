package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
)

// maxBytes is far more than any cluster's configuration has.
const maxBytes = 1 << 20

// Load reads and checks the file at path.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse reads and checks a configuration. Its error has a line for each fault,
// "name:12: models[0].name: what is wrong", in the order of the file.
func Parse(name string, data []byte) (*Config, error) {
	if len(data) > maxBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxBytes)
	}
	root, err := parseDocument(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", name, err)
	}
	cfg := defaults()
	d := decoder{places: places{}, broken: brokenPaths{}}
	d.decode(root, "", reflect.ValueOf(cfg).Elem())
	cfg.complete(d.places)
	v := validator{places: d.places, broken: d.broken}
	v.config(cfg)
	if faults := append(d.faults, v.faults...); len(faults) > 0 {
		return nil, join(name, faults)
	}
	return cfg, nil
}

// fault is something wrong at a place of the file.
type fault struct {
	line int
	path string // "models[0].name"; empty for the file itself
	text string
}

func join(name string, faults []fault) error {
	slices.SortStableFunc(faults, func(a, b fault) int { return cmp.Compare(a.line, b.line) })
	errs := make([]error, len(faults))
	for i, f := range faults {
		where := fmt.Sprintf("%s:%d: ", name, f.line)
		if f.path != "" {
			where += f.path + ": "
		}
		errs[i] = errors.New(where + f.text)
	}
	return errors.Join(errs...)
}

// yamlError is how the YAML parser says where its input is broken.
var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// parseDocument reads the one document of a file. Its error is what comes after
// "mrgc.yaml:": the number of a line, where that is known, and what is wrong.
func parseDocument(data []byte) (*yaml.Node, error) {
	reader := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	err := reader.Decode(&document)
	switch {
	case errors.Is(err, io.EOF): // nothing but comments
		return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1}, nil
	case err != nil:
		return nil, syntaxError(err)
	}
	switch err := reader.Decode(&second); {
	case err == nil:
		return nil, fmt.Errorf("%d: a second document begins here, want one", second.Line)
	case !errors.Is(err, io.EOF):
		return nil, syntaxError(err)
	}
	return document.Content[0], nil
}

func syntaxError(err error) error {
	parts := yamlError.FindStringSubmatch(err.Error())
	switch {
	case parts == nil:
		return fmt.Errorf(" not YAML: %w", err)
	case parts[1] == "": // it does not always know the line
		return fmt.Errorf(" not YAML: %s", parts[2])
	default:
		return fmt.Errorf("%s: not YAML: %s", parts[1], parts[2])
	}
}
