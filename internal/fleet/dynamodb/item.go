package dynamodb

import (
	"fmt"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/mrgc/mrgc/internal/fleet"
)

// item is an item's attributes, or some of them.
type item = map[string]types.AttributeValue

func keyOf(id string) item { return item{attrID: text(id)} }

// encodeRegistration is what a registration sets, but for what is kept of an
// earlier one.
func encodeRegistration(in fleet.Instance, now time.Time) item {
	set := encodeHeartbeat(in.Health, in.Load, in.Usage, now)
	set[attrRegion] = text(string(in.Region))
	set[attrZone] = text(in.Zone)
	set[attrAddress] = text(in.Address)
	set[attrModels] = texts(in.Models)
	set[attrVersions] = textMap(in.Versions)
	set[attrKeyIDs] = texts(in.KeyIDs)
	set[attrRegisteredAt] = number(now.UnixNano())
	return set
}

// encodeHeartbeat is what a heartbeat sets.
func encodeHeartbeat(health fleet.Health, load fleet.Load, usage map[string]fleet.Usage, now time.Time) item {
	return item{
		attrEnclaveOK:    boolean(health.Enclave),
		attrEngineOK:     boolean(health.Engine),
		attrHealthReason: text(health.Reason),
		attrRunning:      number(int64(load.Running)),
		attrQueued:       number(int64(load.Queued)),
		attrSlots:        number(int64(load.Slots)),
		attrLatency:      number(int64(load.Latency)),
		attrRequests:     number(load.Requests),
		attrUsage:        encodeUsage(usage),
		attrHeartbeatAt:  number(now.UnixNano()),
		attrExpiresAt:    number(now.Add(silentFor).Unix()),
	}
}

// decode reads an item that somebody wrote, not necessarily this package. The
// error names the first attribute at fault.
func decode(from item) (*fleet.Instance, error) {
	d := decoder{item: from}
	in := &fleet.Instance{
		ID:       d.text(attrID),
		Region:   fleet.Region(d.text(attrRegion)),
		Zone:     d.text(attrZone),
		Address:  d.text(attrAddress),
		Models:   d.texts(attrModels),
		Versions: d.textMap(attrVersions),
		KeyIDs:   d.texts(attrKeyIDs),
		Draining: d.boolean(attrDraining),
		Health: fleet.Health{
			Enclave: d.boolean(attrEnclaveOK), Engine: d.boolean(attrEngineOK), Reason: d.text(attrHealthReason),
		},
		Load: fleet.Load{
			Running: int(d.number(attrRunning)), Queued: int(d.number(attrQueued)), Slots: int(d.number(attrSlots)),
			Latency: time.Duration(d.number(attrLatency)), Requests: d.optionalNumber(attrRequests),
		},
		Usage:        d.usage(attrUsage),
		RegisteredAt: time.Unix(0, d.number(attrRegisteredAt)).UTC(),
		HeartbeatAt:  time.Unix(0, d.number(attrHeartbeatAt)).UTC(),
		Version:      d.number(attrVersion),
	}
	if d.err != nil {
		return nil, d.err
	}
	if err := in.Validate(); err != nil {
		return nil, err
	}
	return in, nil
}

func text(s string) types.AttributeValue  { return &types.AttributeValueMemberS{Value: s} }
func boolean(b bool) types.AttributeValue { return &types.AttributeValueMemberBOOL{Value: b} }

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

func texts(list []string) types.AttributeValue {
	values := make([]types.AttributeValue, len(list))
	for i, s := range list {
		values[i] = text(s)
	}
	return &types.AttributeValueMemberL{Value: values}
}

func textMap(of map[string]string) types.AttributeValue {
	values := make(item, len(of))
	for name, s := range of {
		values[name] = text(s)
	}
	return &types.AttributeValueMemberM{Value: values}
}

// Names of what was used of a model, each an N.
const (
	usedRequests     = "requests"
	usedEnded        = "ended"
	usedLate         = "late"
	usedAnswers      = "answers"
	usedPromptTokens = "prompt_tokens"
	usedOutputTokens = "output_tokens"
)

func encodeUsage(of map[string]fleet.Usage) types.AttributeValue {
	if of == nil { // as an update cannot leave out what is there
		return &types.AttributeValueMemberNULL{Value: true}
	}
	values := make(item, len(of))
	for model, used := range of {
		values[model] = &types.AttributeValueMemberM{Value: item{
			usedRequests: number(used.Requests), usedEnded: number(used.Ended), usedLate: number(used.Late),
			usedAnswers: number(used.Answers), usedPromptTokens: number(used.PromptTokens), usedOutputTokens: number(used.OutputTokens),
		}}
	}
	return &types.AttributeValueMemberM{Value: values}
}

// decoder reads attributes and remembers the first error.
type decoder struct {
	item item
	err  error
}

func (d *decoder) fail(name, want string) {
	if d.err == nil {
		d.err = fmt.Errorf("attribute %s: want %s", name, want)
	}
}

func (d *decoder) text(name string) string {
	value, ok := d.item[name].(*types.AttributeValueMemberS)
	if !ok {
		d.fail(name, "a string")
		return ""
	}
	return value.Value
}

func (d *decoder) boolean(name string) bool {
	value, ok := d.item[name].(*types.AttributeValueMemberBOOL)
	if !ok {
		d.fail(name, "a boolean")
		return false
	}
	return value.Value
}

func (d *decoder) number(name string) int64 {
	if value, ok := d.item[name].(*types.AttributeValueMemberN); ok {
		if n, err := strconv.ParseInt(value.Value, 10, 64); err == nil {
			return n
		}
	}
	d.fail(name, "a whole number of 64 bits")
	return 0
}

// optionalNumber is 0 where who has written the item does not know the attribute.
func (d *decoder) optionalNumber(name string) int64 {
	if d.item[name] == nil {
		return 0
	}
	return d.number(name)
}

// texts is nil for an empty list, as an instance that lists nothing has it.
func (d *decoder) texts(name string) []string {
	value, ok := d.item[name].(*types.AttributeValueMemberL)
	if !ok {
		d.fail(name, "a list of strings")
		return nil
	}
	var list []string
	for _, element := range value.Value {
		s, ok := element.(*types.AttributeValueMemberS)
		if !ok {
			d.fail(name, "a list of strings")
			return nil
		}
		list = append(list, s.Value)
	}
	return list
}

// textMap is nil for an empty map, and for one that is not there.
func (d *decoder) textMap(name string) map[string]string {
	if _, there := d.item[name]; !there {
		return nil
	}
	value, ok := d.item[name].(*types.AttributeValueMemberM)
	if !ok {
		d.fail(name, "a map of strings")
		return nil
	}
	var of map[string]string
	for key, element := range value.Value {
		s, ok := element.(*types.AttributeValueMemberS)
		if !ok {
			d.fail(name, "a map of strings")
			return nil
		}
		if of == nil {
			of = make(map[string]string, len(value.Value))
		}
		of[key] = s.Value
	}
	return of
}

// usage is nil where it is not known.
func (d *decoder) usage(name string) map[string]fleet.Usage {
	switch value := d.item[name].(type) {
	case nil, *types.AttributeValueMemberNULL:
		return nil
	case *types.AttributeValueMemberM:
		of := make(map[string]fleet.Usage, len(value.Value))
		for model, element := range value.Value {
			used, ok := element.(*types.AttributeValueMemberM)
			if !ok {
				break
			}
			inner := decoder{item: used.Value}
			of[model] = fleet.Usage{
				Requests: inner.number(usedRequests), Ended: inner.number(usedEnded), Late: inner.number(usedLate),
				Answers: inner.number(usedAnswers), PromptTokens: inner.number(usedPromptTokens), OutputTokens: inner.number(usedOutputTokens),
			}
			if inner.err != nil && d.err == nil {
				d.err = fmt.Errorf("attribute %s: %s: %w", name, model, inner.err)
			}
		}
		if len(of) == len(value.Value) {
			return of
		}
	}
	d.fail(name, "a map of maps of numbers")
	return nil
}
