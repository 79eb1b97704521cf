package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
)

// Release is one measured build of the enclave. Its PCRs are all compared: a
// release that pins PCR3 too is acceptable in that role, hence account, only.
//
// In JSON, registers are in hex:
//
//	{"version": 7, "name": "2026-11", "pcrs": {"0": "f4d4…", "1": "bcdf…", "2": "d8f1…", "3": "4a93…"}}
type Release struct {
	Version uint64 `json:"version"` // from 1 on, rising; several entries may share one (one build, several roles)
	Name    string `json:"name"`    // for people
	PCRs    PCRs   `json:"pcrs"`    // at least PCR0, PCR1 and PCR2; none of those zero
}

func (r Release) validate() error {
	if r.Version == 0 {
		return errors.New("version is missing or 0; versions begin at 1")
	}
	if r.Name == "" {
		return errors.New("name is missing")
	}
	if err := r.PCRs.validate(); err != nil {
		return err
	}
	// Without these a release would match other images, too.
	return checkImage(r.PCRs)
}

// ParseReleases reads a JSON array of releases, strictly: unknown or repeated
// fields, trailing data and releases that pin too little are errors. An empty
// array is one, too: it would trust nothing.
func ParseReleases(data []byte) ([]Release, error) {
	releases, err := parseReleases(data)
	if err != nil {
		return nil, fmt.Errorf("releases: %w", err)
	}
	return releases, nil
}

func parseReleases(data []byte) ([]Release, error) {
	var releases []Release
	if err := decodeStrictly(data, &releases); err != nil {
		return nil, err
	}
	if len(releases) == 0 {
		return nil, errors.New("no release")
	}
	for i, r := range releases {
		if err := r.validate(); err != nil {
			return nil, fmt.Errorf("release %d (%q): %w", i, r.Name, err)
		}
	}
	return releases, nil
}

// decodeStrictly reads one JSON array without unknown or repeated fields.
func decodeStrictly(data []byte, into any) error {
	if err := checkKeys(json.NewDecoder(bytes.NewReader(data)), 0); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the array")
	}
	return nil
}

// plainKey is what a key in a file of releases looks like: a lower-case word or
// a plain number. encoding/json takes "Version" for "version" and "+1" for "1",
// and the last of two wins.
var plainKey = regexp.MustCompile(`^([a-z]+|0|[1-9][0-9]*)$`)

// maxDepth is how deep a file of releases nests: array, release, registers.
const maxDepth = 3

// checkKeys reads one JSON value and refuses objects whose keys are not plain
// or not unique.
func checkKeys(dec *json.Decoder, depth int) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxDepth {
		return errors.New("nested too deep")
	}
	seen := make(map[string]bool)
	for dec.More() {
		if open == '{' {
			t, err := dec.Token()
			if err != nil {
				return err
			}
			key, _ := t.(string) // the decoder lets nothing else be a key
			if !plainKey.MatchString(key) {
				return fmt.Errorf("field %q is not a lower-case name or a plain number", key)
			}
			if seen[key] {
				return fmt.Errorf("field %q appears twice", key)
			}
			seen[key] = true
		}
		if err := checkKeys(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}
