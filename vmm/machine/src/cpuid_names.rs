//! Names of CPU features, as `/proc/cpuinfo` and Linux's `cpufeatures.h` have them.

use super::cpuid::Register;

/// The names of the bits of one register of a leaf, from bit 0 on, apart by spaces; `-` is a bit without a name.
struct Names {
    leaf: u32,
    index: u32,
    register: Register,
    names: &'static str,
}

const fn names(leaf: u32, index: u32, register: Register, names: &'static str) -> Names {
    Names {
        leaf,
        index,
        register,
        names,
    }
}

#[rustfmt::skip]
const NAMES: [Names; 16] = [
    names(1, 0, Register::Ecx,
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm \
         - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor"),
    names(1, 0, Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov \
         pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"),
    names(7, 0, Register::Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"),
    names(7, 0, Register::Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - \
         la57 - - - - - rdpid keylocker bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks"),
    names(7, 0, Register::Edx,
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu \
         tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd"),
    names(7, 1, Register::Eax,
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - \
         - fred lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - lam msrlist - - invd_disable movrs"),
    names(7, 1, Register::Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - utmr prefetchi user_msr \
         - uiret_uif cet_sss avx10"),
    names(0xd, 0, Register::Eax,
        "x87_state sse_state avx_state bndregs_state bndcsr_state avx512_opmask_state avx512_zmm_hi256_state avx512_hi16_zmm_state \
         pt_state pkru_state pasid_state cet_user_state cet_kernel_state hdc_state uintr_state lbr_state hwp_state amx_tilecfg_state amx_tiledata_state apx_state"),
    names(0xd, 0, Register::Edx, ""),
    names(0xd, 1, Register::Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    names(0x4000_0001, 0, Register::Eax,
        "kvmclock kvm_nop_io_delay kvm_mmu_op kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi \
         kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvmclock_stable_bit"),
    names(0x8000_0001, 0, Register::Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx addr_mask_ext -"),
    names(0x8000_0001, 0, Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov \
         pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"),
    names(0x8000_0007, 0, Register::Edx,
        "ts fid vid ttp tm stc 100mhzsteps hwpstate constant_tsc cpb eff_freq_ro proc_feedback acc_power"),
    names(0x8000_0008, 0, Register::Ebx,
        "clzero irperf xsaveerptr invlpgb rdpru - mba - mcommit wbnoinvd - - amd_ibpb wbinvd_int amd_ibrs amd_stibp \
         ibrs_always_on stibp_always_on ibrs_preferred ibrs_same_mode efer_lmsle_unsupported invlpgb_nested - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no amd_ibpb_ret branch_sampling"),
    names(0x8000_0021, 0, Register::Eax,
        "no_nested_data_bp fsgs_non_serializing lfence_rdtsc smm_page_cfg_lock - verw_clear null_sel_clr_base upper_address_ignore autoibrs no_smm_ctl_msr fsrs fsrc - prefetch_ctl_msr - - \
         - user_cpuid_faulting epsf - - - - - wl_feedback - eraps sbpb ibpb_brtype srso_no srso_user_kernel_no srso_msr_fix"),
];

/// The name of a feature, if it has one.
pub(super) fn name(leaf: u32, index: u32, register: Register, bit: u32) -> Option<&'static str> {
    let wanted = (leaf, index, register);
    NAMES
        .iter()
        .find(|names| (names.leaf, names.index, names.register) == wanted)?
        .names
        .split_ascii_whitespace()
        .nth(bit as usize)
        .filter(|name| *name != "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_the_names_of_the_manuals_bits() {
        for (leaf, index, register, bit, expected) in [
            (1, 0, Register::Ecx, 5, "vmx"),
            (1, 0, Register::Ecx, 17, "pcid"),
            (1, 0, Register::Ecx, 31, "hypervisor"),
            (1, 0, Register::Edx, 28, "ht"),
            (7, 0, Register::Ebx, 16, "avx512f"),
            (7, 0, Register::Ebx, 31, "avx512vl"),
            (7, 0, Register::Ecx, 7, "shstk"),
            (7, 0, Register::Ecx, 22, "rdpid"),
            (7, 0, Register::Ecx, 30, "sgx_lc"),
            (7, 0, Register::Edx, 14, "serialize"),
            (7, 0, Register::Edx, 20, "ibt"),
            (7, 0, Register::Edx, 24, "amx_tile"),
            (7, 0, Register::Edx, 29, "arch_capabilities"),
            (7, 1, Register::Eax, 5, "avx512_bf16"),
            (7, 1, Register::Eax, 26, "lam"),
            (7, 1, Register::Edx, 14, "prefetchi"),
            (0xd, 0, Register::Eax, 18, "amx_tiledata_state"),
            (0xd, 1, Register::Eax, 3, "xsaves"),
            (0x4000_0001, 0, Register::Eax, 14, "kvm_asyncpf_int"),
            (0x4000_0001, 0, Register::Eax, 24, "kvmclock_stable_bit"),
            (0x8000_0001, 0, Register::Ecx, 2, "svm"),
            (0x8000_0001, 0, Register::Ecx, 22, "topoext"),
            (0x8000_0001, 0, Register::Ecx, 28, "perfctr_llc"),
            (0x8000_0001, 0, Register::Edx, 20, "nx"),
            (0x8000_0001, 0, Register::Edx, 27, "rdtscp"),
            (0x8000_0007, 0, Register::Edx, 8, "constant_tsc"),
            (0x8000_0008, 0, Register::Ebx, 24, "amd_ssbd"),
            (0x8000_0021, 0, Register::Eax, 8, "autoibrs"),
            (0x8000_0021, 0, Register::Eax, 27, "sbpb"),
        ] {
            assert_eq!(name(leaf, index, register, bit), Some(expected));
        }
        assert_eq!(name(1, 0, Register::Edx, 10), None, "reserved");
        assert_eq!(name(2, 0, Register::Eax, 0), None, "no features");
        assert!(
            NAMES
                .iter()
                .all(|word| word.names.split_ascii_whitespace().count() <= 32)
        );
    }
}
