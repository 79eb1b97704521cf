package globaltables

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/mrgc/mrgc/internal/state/schema"
)

const replicaPath = "/replica"

// replica is what a region is told of a table that is to have a replica there.
type replica struct {
	Table   string                     `json:"table"`
	Regions []string                   `json:"regions"`          // all that have it then
	Create  map[string]json.RawMessage `json:"create,omitempty"` // CreateTable's input; none: it is strongly consistent, and there
	TTL     string                     `json:"ttl,omitempty"`
}

// describeTable adds what DynamoDB Local does not know: replicas, and how consistent
// they are.
func (r *Region) describeTable(w http.ResponseWriter, req *http.Request, from *database, name string) {
	a, err := from.ask(req.Context(), dynamoDB+"DescribeTable", fmt.Appendf(nil, `{"TableName":%q}`, name))
	if err == nil && a.status == http.StatusOK {
		a, err = r.withReplicas(a, name, "Table")
	}
	if err != nil {
		unavailable(w, err)
		return
	}
	a.write(w)
}

// withReplicas adds them to a description, which is called so in the answer.
func (r *Region) withReplicas(a answer, name, called string) (answer, error) {
	r.mu.Lock()
	regions := r.journal.replicas[name]
	r.mu.Unlock()
	if len(regions) == 0 {
		return a, nil
	}
	var whole map[string]map[string]json.RawMessage
	if err := json.Unmarshal(a.body, &whole); err != nil {
		return a, err
	}
	var replicas []map[string]string
	for _, region := range regions {
		if region != r.cfg.Region {
			replicas = append(replicas, map[string]string{"RegionName": region, "ReplicaStatus": "ACTIVE"})
		}
	}
	var err error
	if whole[called]["Replicas"], err = json.Marshal(replicas); err != nil {
		return a, err
	}
	whole[called]["MultiRegionConsistency"] = json.RawMessage(`"` + r.tables[name].Consistency + `"`)
	whole[called]["GlobalTableVersion"] = json.RawMessage(`"2019.11.21"`)
	return a.edited(whole)
}

// addReplicas makes a table in other regions that is in this one.
func (r *Region) addReplicas(w http.ResponseWriter, req *http.Request, from *database, asked *wire) {
	table, known := r.tables[asked.TableName]
	strong := asked.MultiRegionConsistency == string(schema.Strong)
	if !known || table.Consistency == schema.Regional || strong != (table.Consistency == schema.Strong) {
		refuse(w, fmt.Errorf("table %q is not to have such replicas by internal/state/schema", asked.TableName))
		return
	}
	r.mu.Lock()
	all := append([]string{r.cfg.Region}, r.journal.replicas[asked.TableName]...)
	r.mu.Unlock()
	for _, update := range asked.ReplicaUpdates {
		if update.Create == nil || r.peers[update.Create.RegionName] == nil {
			refuse(w, fmt.Errorf("replicas of %s can be created in the other regions, and not otherwise changed", asked.TableName))
			return
		}
		all = append(all, update.Create.RegionName)
	}
	slices.Sort(all)
	what := replica{Table: asked.TableName, Regions: slices.Compact(all)}
	if strong && len(what.Regions) != 1+len(r.peers) {
		refuse(w, fmt.Errorf("a strongly consistent table gets its replicas in all of %d regions at once", 1+len(r.peers)))
		return
	}
	a, err := r.spread(req.Context(), from, what, strong)
	if err != nil {
		unavailable(w, err)
		return
	}
	a.write(w)
}

// spread tells all regions that have the table of each other, and gives UpdateTable's
// answer.
func (r *Region) spread(ctx context.Context, from *database, what replica, strong bool) (answer, error) {
	a, err := from.ask(ctx, dynamoDB+"DescribeTable", fmt.Appendf(nil, `{"TableName":%q}`, what.Table))
	if err != nil || a.status != http.StatusOK {
		return a, err
	}
	var described struct {
		Table struct {
			AttributeDefinitions, KeySchema, StreamSpecification json.RawMessage
			GlobalSecondaryIndexes                               []struct {
				IndexName             string
				KeySchema, Projection json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(a.body, &described); err != nil {
		return a, err
	}
	if !strong {
		t := described.Table
		what.Create = map[string]json.RawMessage{
			"TableName": json.RawMessage(fmt.Sprintf("%q", what.Table)), "BillingMode": json.RawMessage(`"PAY_PER_REQUEST"`),
			"AttributeDefinitions": t.AttributeDefinitions, "KeySchema": t.KeySchema,
		}
		if t.StreamSpecification == nil {
			return a, fmt.Errorf("table %s has no stream, by which it is replicated", what.Table)
		}
		what.Create["StreamSpecification"] = t.StreamSpecification
		if len(t.GlobalSecondaryIndexes) > 0 {
			if what.Create["GlobalSecondaryIndexes"], err = json.Marshal(t.GlobalSecondaryIndexes); err != nil {
				return a, err
			}
		}
		if what.TTL, err = from.ttl(ctx, what.Table); err != nil {
			return a, err
		}
	}
	for _, region := range what.Regions {
		if region == r.cfg.Region {
			continue
		}
		if err := r.toPeer(ctx, r.peers[region], replicaPath, what); err != nil {
			return a, err
		}
	}
	if err := r.noteReplicas(what); err != nil {
		return a, err
	}
	if a, err = r.withReplicas(a, what.Table, "Table"); err != nil {
		return a, err
	}
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(a.body, &whole); err != nil {
		return a, err
	}
	return a.edited(map[string]json.RawMessage{"TableDescription": whole["Table"]})
}

// ttl is the attribute by which a table's items expire, or none.
func (d *database) ttl(ctx context.Context, table string) (string, error) {
	var got struct {
		TimeToLiveDescription struct{ TimeToLiveStatus, AttributeName string }
	}
	err := d.call(ctx, dynamoDB+"DescribeTimeToLive", map[string]string{"TableName": table}, &got)
	if got.TimeToLiveDescription.TimeToLiveStatus == "DISABLED" {
		return "", err
	}
	return got.TimeToLiveDescription.AttributeName, err
}

func (r *Region) noteReplicas(what replica) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.journal.setReplicas(what.Table, what.Regions)
}

// makeReplica makes a table here that another region has, unless it is here.
func (r *Region) makeReplica(ctx context.Context, body []byte) error {
	var what replica
	if err := json.Unmarshal(body, &what); err != nil {
		return err
	}
	if what.Create != nil {
		in, err := json.Marshal(what.Create)
		if err != nil {
			return err
		}
		a, err := r.near.ask(ctx, dynamoDB+"CreateTable", in)
		if err != nil {
			return err
		}
		var failed struct {
			Type string `json:"__type"`
		}
		if a.status != http.StatusOK {
			if err := json.Unmarshal(a.body, &failed); err != nil || failed.Type != errorPrefix+"ResourceInUseException" {
				return fmt.Errorf("create: %s", a.body)
			}
		}
		has, err := r.near.ttl(ctx, what.Table)
		if err != nil {
			return err
		}
		if has != what.TTL {
			err := r.near.call(ctx, dynamoDB+"UpdateTimeToLive", map[string]any{
				"TableName": what.Table, "TimeToLiveSpecification": map[string]any{"AttributeName": what.TTL, "Enabled": true},
			}, nil)
			if err != nil {
				return err
			}
		}
	}
	return r.noteReplicas(what)
}
