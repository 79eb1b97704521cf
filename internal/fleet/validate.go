package fleet

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
)

var (
	// A label fits a DNS label (RFC 1123 section 2.1), a segment of a SPIFFE
	// path and a metric's label alike.
	label     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	modelName = regexp.MustCompile(`^[A-Za-z0-9._/:-]{1,128}$`)
	version   = regexp.MustCompile(`^[A-Za-z0-9._+-]{1,128}$`)
	keyID     = regexp.MustCompile(`^[0-9a-f]{16}$`)
)

const labelRule = "want 1 to 63 of a-z, 0-9 and '-', no '-' at either end"

// Validate checks everything that the instance's parent says of it, and
// nothing that the store sets. The error names the first field at fault.
func (in *Instance) Validate() error {
	if err := ValidateID(in.ID); err != nil {
		return err
	}
	if err := in.Region.Validate(); err != nil {
		return fmt.Errorf("instance %s: %w", in.ID, err)
	}
	if in.Zone != "" && !label.MatchString(in.Zone) {
		return fmt.Errorf("instance %s: zone %q: %s, or nothing", in.ID, in.Zone, labelRule)
	}
	if err := validateAddress(in.Address); err != nil {
		return fmt.Errorf("instance %s: %w", in.ID, err)
	}
	for i, model := range in.Models {
		if err := ValidateModel(model); err != nil {
			return fmt.Errorf("instance %s: models[%d]: %w", in.ID, i, err)
		}
		if slices.Contains(in.Models[:i], model) {
			return fmt.Errorf("instance %s: models[%d]: %q is listed twice", in.ID, i, model)
		}
	}
	for _, model := range slices.Sorted(maps.Keys(in.Versions)) {
		if !slices.Contains(in.Models, model) {
			return fmt.Errorf("instance %s: versions: %q is none of its models", in.ID, model)
		}
		if err := ValidateVersion(in.Versions[model]); err != nil {
			return fmt.Errorf("instance %s: versions of %s: %w", in.ID, model, err)
		}
	}
	for i, kid := range in.KeyIDs {
		if !keyID.MatchString(kid) {
			return fmt.Errorf("instance %s: key ids[%d]: %q: want 16 lower-case hex digits", in.ID, i, kid)
		}
		if slices.Contains(in.KeyIDs[:i], kid) {
			return fmt.Errorf("instance %s: key ids[%d]: %s is listed twice", in.ID, i, kid)
		}
	}
	if err := in.Load.validate(in.ID); err != nil {
		return err
	}
	return validateUsage(in.ID, in.Usage)
}

// Validate checks a heartbeat. The error names the first field at fault.
func (hb *Heartbeat) Validate() error {
	if err := ValidateID(hb.ID); err != nil {
		return err
	}
	if err := hb.Load.validate(hb.ID); err != nil {
		return err
	}
	return validateUsage(hb.ID, hb.Usage)
}

// Validate checks a region's name.
func (r Region) Validate() error {
	if !label.MatchString(string(r)) {
		return fmt.Errorf("region %q: %s", string(r), labelRule)
	}
	return nil
}

// ValidateID checks an instance's ID.
func ValidateID(id string) error {
	if !label.MatchString(id) {
		return fmt.Errorf("instance id %q: %s", id, labelRule)
	}
	return nil
}

// ValidateModel checks a model's name. What passes fits into a header and into
// the name of an Envoy cluster as it is.
func ValidateModel(name string) error {
	if !modelName.MatchString(name) {
		return fmt.Errorf("model %q: want 1 to 128 of A-Z, a-z, 0-9 and ._/:-", name)
	}
	return nil
}

// ValidateVersion checks the name of a model's version.
func ValidateVersion(name string) error {
	if !version.MatchString(name) {
		return fmt.Errorf("version %q: want 1 to 128 of A-Z, a-z, 0-9 and ._+-", name)
	}
	return nil
}

// validateAddress wants the one way to write an address, because the picker's
// choice and Envoy's endpoint are compared as text.
func validateAddress(address string) error {
	parsed, err := netip.ParseAddrPort(address)
	switch {
	case err != nil || parsed.Port() == 0:
		return fmt.Errorf("address %q: want IP:port", address)
	case parsed.Addr().IsUnspecified():
		return fmt.Errorf("address %q: nobody can dial the unspecified address", address)
	case parsed.Addr().Is4In6() || parsed.Addr().Zone() != "" || parsed.String() != address:
		return fmt.Errorf("address %q: not in its canonical form, without a zone", address)
	}
	return nil
}

func (l *Load) validate(id string) error {
	for _, field := range []struct {
		name  string
		value int64
	}{
		{"running", int64(l.Running)},
		{"queued", int64(l.Queued)},
		{"slots", int64(l.Slots)},
		{"latency", int64(l.Latency)},
		{"requests", l.Requests},
	} {
		if field.value < 0 {
			return fmt.Errorf("instance %s: load: %s is negative", id, field.name)
		}
	}
	return nil
}

// maxUsedModels bounds a heartbeat: no instance serves more models.
const maxUsedModels = 64

func validateUsage(id string, of map[string]Usage) error {
	if len(of) > maxUsedModels {
		return fmt.Errorf("instance %s: usage of %d models, want at most %d", id, len(of), maxUsedModels)
	}
	for _, model := range slices.Sorted(maps.Keys(of)) {
		if err := ValidateModel(model); err != nil {
			return fmt.Errorf("instance %s: usage: %w", id, err)
		}
		used := of[model]
		for _, field := range []struct {
			name  string
			value int64
		}{
			{"requests", used.Requests},
			{"ended", used.Ended},
			{"late", used.Late},
			{"answers", used.Answers},
			{"prompt tokens", used.PromptTokens},
			{"output tokens", used.OutputTokens},
		} {
			if field.value < 0 {
				return fmt.Errorf("instance %s: usage of %s: %s is negative", id, model, field.name)
			}
		}
	}
	return nil
}
