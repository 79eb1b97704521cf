package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mrgc/mrgc/internal/routing"
)

// WithSplit gives the content of a file in which a model's versions have other
// weights, and every other byte, comments included, is as it was. The split must
// have the versions that the file has, and each of them its weight, written out as
// a plain number.
//
// The result has been read again: it is valid, and says nothing else than before
// but for the weights. A file that is written too unusually to be sure of that is
// an error, and to be edited by hand.
func WithSplit(name string, data []byte, model string, split routing.Split) ([]byte, error) {
	before, err := Parse(name, data)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(before.Models, func(m Model) bool { return m.Name == model })
	if at < 0 {
		return nil, fmt.Errorf("%s has no model %q", name, model)
	}
	root, err := parseDocument(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", name, err)
	}
	edited, err := replaceWeights(string(data), member(member(root, "models").Content[at], "versions"), split)
	if err != nil {
		return nil, fmt.Errorf("%s: versions of model %q: %w", name, model, err)
	}
	after, err := Parse(name, []byte(edited))
	if err != nil {
		return nil, fmt.Errorf("with the new weights: %w", err)
	}
	before.Models[at].Versions = versionsOf(split)
	if !reflect.DeepEqual(after, before) {
		return nil, fmt.Errorf("%s is written in a way that this program cannot edit: change the weights of %q by hand", name, model)
	}
	return []byte(edited), nil
}

func versionsOf(split routing.Split) (versions []Version) {
	for _, v := range split {
		versions = append(versions, Version{Name: v.Name, Weight: v.Weight})
	}
	return versions
}

// member is the value of a mapping's field; nil if there is none.
func member(of *yaml.Node, name string) *yaml.Node {
	for i := 0; of != nil && of.Kind == yaml.MappingNode && i+1 < len(of.Content); i += 2 {
		if of.Content[i].Value == name {
			return of.Content[i+1]
		}
	}
	return nil
}

// replaceWeights writes the split's weights over those of a list of versions, from
// the last to the first, so that places before stay what they are.
func replaceWeights(text string, versions *yaml.Node, split routing.Split) (string, error) {
	if versions == nil || len(versions.Content) != len(split) {
		return "", errors.New("there are not as many as the split has")
	}
	lines := strings.SplitAfter(text, "\n")
	for i := len(split) - 1; i >= 0; i-- {
		weight := member(versions.Content[i], "weight")
		if weight == nil {
			return "", fmt.Errorf("%q has no weight: write \"weight: 0\" below its name first", split[i].Name)
		}
		if weight.Line < 1 || weight.Line > len(lines) {
			return "", errors.New("the lines are not where they should be")
		}
		line := lines[weight.Line-1]
		begin := weight.Column - 1 // of ASCII text before it; anything else is noticed below
		if begin < 0 || begin > len(line) || !strings.HasPrefix(line[begin:], weight.Value) {
			return "", fmt.Errorf("the weight of %q in line %d is not a plain number", split[i].Name, weight.Line)
		}
		lines[weight.Line-1] = line[:begin] + strconv.Itoa(split[i].Weight) + line[begin+len(weight.Value):]
	}
	return strings.Join(lines, ""), nil
}
