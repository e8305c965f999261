// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// restoreDataAll writes what BackupDataAll saved back into the volumes of several
// pods. Everything that can be known beforehand is checked before the first byte
// is written.
type restoreDataAll struct{ *Data }

func (*restoreDataAll) Name() string { return "RestoreDataAll" }

func (*restoreDataAll) RequiredArgs() []string {
	return []string{"namespace", "image", "backupArtifactPrefix", "backupInfo"}
}

func (f *restoreDataAll) Arguments() []string {
	return append(append(f.RequiredArgs(), "pods", "restorePath", "encryptionKey", "insecureTLS"), podArgNames...)
}

func (*restoreDataAll) Resumable() bool { return true }

// podRestore is what is restored for one pod.
type podRestore struct {
	pod string
	restoration
	repo *repository.Repository
}

func (f *restoreDataAll) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, prefix, info, list string
	restorePath := "/"
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "backupArtifactPrefix": &prefix, "backupInfo": &info,
		"pods": &list, "restorePath": &restorePath,
	}); err != nil {
		return nil, err
	}
	if err := checkProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	backups, err := decodeBackupInfo(info)
	if err != nil {
		return nil, err
	}
	pods, workload := podNames(list, call.Params)
	switch {
	case !workload:
		return nil, errors.New("Unsupported workload type: give pods, or a Deployment or StatefulSet as the object of the action") // Kanister's text
	case len(pods) == 0:
		// It was scaled down before: its template tells where the volumes are.
		pods = slices.Sorted(maps.Keys(backups))
	}
	if len(pods) == 0 {
		return nil, errors.New("restore data of all pods: backupInfo names no pod")
	}
	overrides, err := decodePod(call)
	if err != nil {
		return nil, err
	}

	restores, err := f.plan(ctx, call, namespace, prefix, restorePath, pods, backups)
	defer func() {
		for _, r := range restores {
			r.repo.Close()
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("restore data of all pods: nothing was written: %w", err)
	}
	progress := newTotals(len(restores), call.Progress)
	outcomes := make([]outcome[*api.RestoreResult], len(restores))
	// Pods that share a claim take turns.
	each(ctx, byClaim(restores), func(_ int, turn []int) (any, error) {
		for _, i := range turn {
			r := restores[i]
			outcomes[i].value, outcomes[i].err = f.restore(ctx, call, r.repo, r.restoration, overrides, progress.of(i))
		}
		return nil, nil
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var total api.RestoreResult
	var done, places []string
	for i, r := range restores {
		if o := outcomes[i]; o.err == nil {
			total.Files += o.value.Files
			total.Bytes += o.value.Bytes
			for _, what := range o.value.NotKept {
				total.NotKept = append(total.NotKept, r.pod+": "+what)
			}
			done, places = append(done, r.pod), append(places, r.pod+": "+r.restoredTo())
		}
	}
	if failed := failures(pods, outcomes); failed != "" {
		if len(done) > 0 {
			failed += "\nrestored: " + strings.Join(places, "; ")
		}
		return nil, fmt.Errorf("restore data of %d of %d pods:\n%s", len(pods)-len(done), len(pods), failed)
	}
	return restoreOutputs(strings.Join(places, "; "), &total), nil
}

// plan looks all backups up, finds the pod of each and the place of its data. The
// repositories of what it returns are open, also with an error.
func (f *restoreDataAll) plan(ctx context.Context, call Call, namespace, prefix, restorePath string, pods []string, backups map[string]podBackup) (restores []podRestore, err error) {
	// Others than those of these pods matter only when a pod has none of its name.
	wanted := slices.DeleteFunc(slices.Sorted(maps.Keys(backups)), func(name string) bool { return !slices.Contains(pods, name) })
	if len(wanted) < len(pods) {
		wanted = slices.Sorted(maps.Keys(backups))
	}
	type found struct {
		repo   *repository.Repository
		record api.Record
	}
	outcomes := each(ctx, wanted, func(_ int, pod string) (found, error) {
		repo, record, err := f.findBackup(ctx, call, part(call.OperationID, pod), namespace,
			podPrefix(call.Params.Profile, prefix, pod), api.FindRequest{BackupID: backups[pod].BackupID})
		return found{repo, record}, err
	})
	by := map[string]found{}
	var sources []side
	for i, o := range outcomes {
		if o.err == nil {
			by[wanted[i]] = o.value
			sources = append(sources, side{wanted[i], claimsOfRecord(o.value.record)})
		}
	}
	defer func() {
		for _, f := range by {
			f.repo.Close()
		}
	}()
	if failed := failures(wanted, outcomes); failed != "" {
		return nil, errors.New(failed)
	}
	var targets []side
	for _, pod := range pods {
		template, err := f.podOf(ctx, call.Params, namespace, pod)
		if err != nil {
			return nil, fmt.Errorf("pod %s: %w", pod, err)
		}
		targets = append(targets, side{pod, volumes.Claims(template)})
	}
	pairs, err := match(targets, sources, call.Params.StatefulSet != nil)
	if err != nil {
		return nil, err
	}
	for _, pod := range pods {
		source := by[pairs[pod]]
		what, err := plan(source.record, restorePath, "")
		if err != nil {
			return restores, fmt.Errorf("pod %s: %w", pod, err)
		}
		r := podRestore{pod: pod, repo: source.repo, restoration: restoration{
			// By the backup: the names of a Deployment's pods are others after a restart.
			operation: part(call.OperationID, pairs[pod]), moverPrefix: "restore-data-all-",
			record: source.record, subPath: what.subPath, namespace: namespace,
		}}
		if r.claim, r.inside, err = f.target(ctx, call.Params, namespace, pod, nil, what.target); err != nil {
			return restores, fmt.Errorf("pod %s: %w", pod, err)
		}
		restores = append(restores, r)
		delete(by, pairs[pod]) // it is closed with the restores
	}
	return restores, nil
}

func claimsOfRecord(r api.Record) []string {
	if r.Claim == "" {
		return nil
	}
	return []string{r.Claim}
}

// byClaim groups restores, by their index, that write into one claim.
func byClaim(restores []podRestore) [][]int {
	at := map[string]int{}
	var turns [][]int
	for i, r := range restores {
		t, ok := at[r.claim]
		if !ok {
			t = len(turns)
			at[r.claim] = t
			turns = append(turns, nil)
		}
		turns[t] = append(turns[t], i)
	}
	return turns
}
