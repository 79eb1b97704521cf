package dynamodb

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// item is an item's attributes. A field is an attribute of its own, so that people
// can read and write it.
type item = map[string]types.AttributeValue

func encodeKey(table schema.Table, key state.Key) item {
	encoded := item{table.PartitionKey.Name: text(key.Partition)}
	if table.SortKey != nil {
		encoded[table.SortKey.Name] = text(key.Sort)
	}
	return encoded
}

// decodeLive decodes what has not expired: DynamoDB removes it when it comes to it.
func decodeLive(table schema.Table, from []item) ([]state.Item, error) {
	var live []state.Item
	now := time.Now().Unix()
	for _, i := range from {
		if expires, err := whole(i, schema.TTL); len(i) == 0 || (err == nil && expires <= now) {
			continue
		}
		decoded, err := decode(table, i)
		if err != nil {
			return nil, err
		}
		live = append(live, decoded)
	}
	return live, nil
}

// decode reads an item that somebody wrote, not necessarily this package. One
// that was written by hand from the start has the version 0, which a write that
// creates it may replace. Without attributes it is none, of version 0.
func decode(table schema.Table, from item) (state.Item, error) {
	decoded := state.Item{Key: state.Key{Partition: plain(from[table.PartitionKey.Name])}}
	if table.SortKey != nil {
		decoded.Key.Sort = plain(from[table.SortKey.Name])
	}
	fields := map[string]any{}
	for name, value := range from {
		var err error
		switch {
		case name == table.PartitionKey.Name, table.SortKey != nil && name == table.SortKey.Name,
			name == state.FieldWriteID, name == schema.TTL:
		case name == state.FieldVersion:
			decoded.Version, err = whole(from, name)
		case name == state.FieldFence:
			decoded.Fence, err = whole(from, name)
		default:
			fields[name], err = decodeValue(value)
		}
		if err != nil {
			return state.Item{}, fmt.Errorf("item %s: attribute %s: %w", decoded.Key, name, err)
		}
	}
	var err error
	decoded.Fields, err = json.Marshal(fields)
	return decoded, err
}

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

func plain(value types.AttributeValue) string {
	s, _ := value.(*types.AttributeValueMemberS)
	if s == nil {
		return ""
	}
	return s.Value
}

func writeID(of item) string { return plain(of[state.FieldWriteID]) }

func whole(of item, name string) (int64, error) {
	if n, ok := of[name].(*types.AttributeValueMemberN); ok {
		if value, err := strconv.ParseInt(n.Value, 10, 64); err == nil {
			return value, nil
		}
	}
	return 0, fmt.Errorf("%s: want a whole number of 64 bits", name)
}

// encode makes an attribute of a JSON value.
func encode(value json.RawMessage) (types.AttributeValue, error) {
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber()
	var parsed any
	if err := decoder.Decode(&parsed); err != nil {
		return nil, err
	}
	return encodeValue(parsed)
}

func encodeValue(value any) (types.AttributeValue, error) {
	switch v := value.(type) {
	case nil:
		return &types.AttributeValueMemberNULL{Value: true}, nil
	case bool:
		return &types.AttributeValueMemberBOOL{Value: v}, nil
	case string:
		return text(v), nil
	case json.Number:
		return &types.AttributeValueMemberN{Value: v.String()}, nil
	case []any:
		list := make([]types.AttributeValue, len(v))
		for i, element := range v {
			var err error
			if list[i], err = encodeValue(element); err != nil {
				return nil, err
			}
		}
		return &types.AttributeValueMemberL{Value: list}, nil
	case map[string]any:
		fields := make(item, len(v))
		for name, element := range v {
			var err error
			if fields[name], err = encodeValue(element); err != nil {
				return nil, err
			}
		}
		return &types.AttributeValueMemberM{Value: fields}, nil
	}
	return nil, fmt.Errorf("a %T is no JSON value", value)
}

func decodeValue(value types.AttributeValue) (any, error) {
	switch v := value.(type) {
	case *types.AttributeValueMemberNULL:
		return nil, nil
	case *types.AttributeValueMemberBOOL:
		return v.Value, nil
	case *types.AttributeValueMemberS:
		return v.Value, nil
	case *types.AttributeValueMemberN:
		return json.Number(v.Value), nil
	case *types.AttributeValueMemberL:
		list := make([]any, len(v.Value))
		for i, element := range v.Value {
			var err error
			if list[i], err = decodeValue(element); err != nil {
				return nil, err
			}
		}
		return list, nil
	case *types.AttributeValueMemberM:
		fields := make(map[string]any, len(v.Value))
		for name, element := range v.Value {
			var err error
			if fields[name], err = decodeValue(element); err != nil {
				return nil, err
			}
		}
		return fields, nil
	}
	return nil, fmt.Errorf("want a string, number, boolean, list or map, not a %T", value)
}
