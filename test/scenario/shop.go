// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// The sample database of manifests/samples/postgresql.
const (
	ShopNamespace = "shop"
	shopPod       = "db-0"
	shopContainer = "postgresql"
)

// Shop is the story of the demo: a database that is backed up, lost and restored.
type Shop struct {
	*Cluster
	// Profile is the name of the Profile the story makes and uses.
	Profile string
	// Watch is shown every change of a running ActionSet; may be nil.
	Watch func(*crv1alpha1.ActionSet)

	rows    string
	backups []*crv1alpha1.ActionSet
}

// Storage brings up S3 and the Profile.
func (s *Shop) Storage(ctx context.Context) error {
	keys, err := s.StartS3(ctx)
	if err != nil {
		return err
	}
	return s.PutProfile(ctx, s.Profile, keys, s.Profile)
}

// Start makes the database anew and waits until it answers.
func (s *Shop) Start(ctx context.Context) (string, error) {
	if err := s.DeleteNamespace(ctx, ShopNamespace); err != nil {
		return "", err
	}
	if _, err := s.Kubectl(ctx, "apply",
		"-f", filepath.Join(s.Root, "manifests/samples/postgresql/postgresql.yaml"),
		"-f", filepath.Join(s.Root, "manifests/samples/postgresql/blueprint.yaml")); err != nil {
		return "", err
	}
	if err := s.Rollout(ctx, ShopNamespace, "statefulset/db"); err != nil {
		return "", err
	}
	pod, err := s.Pod(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range pod.Spec.InitContainers {
		if c.Name == names.AgentContainer {
			return fmt.Sprintf("%s runs, agent %q injected", pod.Name, c.Name), nil
		}
	}
	return "", errors.New("the pod got no agent: look at the webhook's log")
}

// Pod is the database's pod as it is now.
func (s *Shop) Pod(ctx context.Context) (*corev1.Pod, error) {
	var pod corev1.Pod
	err := s.Get(ctx, client.ObjectKey{Namespace: ShopNamespace, Name: shopPod}, &pod)
	return &pod, err
}

// SQL runs one statement and returns the bare result.
func (s *Shop) SQL(ctx context.Context, statement string) (string, error) {
	out, err := s.KubectlWithInput(ctx, statement, "exec", "-i", "-n", ShopNamespace, shopPod, "-c", shopContainer, "--",
		"psql", "-U", "postgres", "--quiet", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1")
	return strings.TrimSpace(out), err
}

// RowMarker stands in every row: whoever finds it outside the database has found plaintext.
const RowMarker = "plaintext-row-marker"

// Fill adds orders and remembers what the table holds.
func (s *Shop) Fill(ctx context.Context, orders int) (string, error) {
	if _, err := s.SQL(ctx, fmt.Sprintf(`
create table if not exists orders (id serial primary key, item text not null, at timestamptz not null default now());
insert into orders (item) select '%s ' || md5(random()::text) from generate_series(1, %d);`, RowMarker, orders)); err != nil {
		return "", err
	}
	rows, err := s.checksum(ctx)
	s.rows = rows
	return rows, err
}

func (s *Shop) checksum(ctx context.Context) (string, error) {
	return s.SQL(ctx, `select count(*) || ' rows, checksum ' || md5(string_agg(o::text, E'\n' order by id)) from orders o`)
}

// Backup runs the Blueprint's backup action.
func (s *Shop) Backup(ctx context.Context) (string, error) {
	as, err := s.Run(ctx, &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "backup-"},
		Spec:       &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{s.action("backup")}},
	}, s.Watch)
	if err != nil {
		return "", err
	}
	s.backups = append(s.backups, as)
	out := func(key string) string { return Output(as, "saveBase", key) }
	return fmt.Sprintf("snapshot %s, %s files, %s, of which new %s",
		out("backupID"), out("fileCount"), out("size"), out("phySize")), nil
}

// LastBackup is the ActionSet of the last Backup.
func (s *Shop) LastBackup() *crv1alpha1.ActionSet { return s.backups[len(s.backups)-1] }

// Backups are the ActionSets of all backups, oldest first.
func (s *Shop) Backups() []*crv1alpha1.ActionSet { return s.backups }

func (s *Shop) action(name string) crv1alpha1.ActionSpec {
	return Action(name, "postgresql", s.Profile, ShopNamespace, "db")
}

// Destroy drops the table, then damages the files below the server.
func (s *Shop) Destroy(ctx context.Context) (string, error) {
	if _, err := s.SQL(ctx, "drop table orders"); err != nil {
		return "", err
	}
	_, err := s.Exec(ctx, ShopNamespace, shopPod, shopContainer,
		`cd "$PGDATA" && rm -rf base/1 pg_xact/* && echo garbage > global/pg_control`)
	return "", err
}

// Restore runs the Blueprint's restore action with the last backup's artifacts.
func (s *Shop) Restore(ctx context.Context) (string, error) {
	as, err := s.Run(ctx, &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "restore-"},
		Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{
			From(s.action("restore"), s.LastBackup()),
		}},
	}, s.Watch)
	if err != nil {
		return "", err
	}
	return as.Name, s.Rollout(ctx, ShopNamespace, "statefulset/db")
}

// Compare says whether the table holds what it held at the last Fill.
func (s *Shop) Compare(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	rows, err := s.checksum(ctx)
	if err != nil {
		return "", err
	}
	if rows != s.rows {
		return "", fmt.Errorf("the rows differ: had %s, have %s", s.rows, rows)
	}
	return rows, nil
}
